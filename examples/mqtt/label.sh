#!/usr/bin/env bash
# Shows: telling a device what was right after all, as quality inspection would, for one request or for a time.
# Run:   examples/mqtt/label.sh ask-1234 outer     (the id that ask.sh printed, and the class that was found)
#        FROM=2026-01-01T06:00:00Z TO=2026-01-01T06:20:00Z examples/mqtt/label.sh - none
# Expect: one line within a second: {"id":"ask-1234","status":"ok","data":{"contradicted":0,"labelled":1,"repeated":0},"error":null}
#        or {"id":"ask-1234","status":"error",...} that says why, as where the device's config doesn't have "feedback"
#        in commands.unsigned. Exit 1 when nobody answers in TIMEOUT (10) seconds. Needs mosquitto-clients.
# Broker with users or TLS: put the options (-u NAME, -P WORD, --cafile FILE), one a line, into
#        ~/.config/mosquitto_pub and ~/.config/mosquitto_sub, which both programs read.
set -euo pipefail

id="${1:?the id of a request, or -}" label="${2:?the class that was right}"
broker=(-h "${BROKER:-localhost}" -p "${PORT:-1883}" -q 1)
branch="${BRANCH:-gaisnet/v1/north/bearings/p1}"
model="${MODEL:-bearing}"

message="{\"id\":\"$id\",\"label\":\"$label\"}"
if [ "$id" = - ]; then
  message="{\"from\":\"${FROM:?}\",\"to\":\"${TO:?}\",\"label\":\"$label\"}"
fi

# Listen first: -c makes a session that the broker keeps, -E ends once it is there.
listen=(mosquitto_sub "${broker[@]}" -i "label-$$" -t "$branch/reply/feedback")
"${listen[@]}" -c -E
trap '"${listen[@]}" -E' EXIT # a connection without -c: the broker forgets the session
mosquitto_pub "${broker[@]}" -t "$branch/feedback/$model" -s <<<"$message"
"${listen[@]}" -c -C 1 -W "${TIMEOUT:-10}" 2>/dev/null || {
  echo "no reply on $branch/reply/feedback: is the node online ($branch/status)?" >&2
  exit 1
}
