#!/usr/bin/env bash
# Shows: asking a device's model about one window of vibration, here a made-up one: a ringing
#        that starts anew every 300 samples, as a damaged race would make it.
# Run:   examples/mqtt/ask.sh                      (device p1 of the demo's site north)
#        BRANCH=gaisnet/v1/south/bearings/p3 PORT=1884 examples/mqtt/ask.sh
# Expect: one line within a second, with the id that was asked for:
#        {"status":"ok","value":2.0,"label":"outer","confidence":0.8,...,"id":"ask-1234"}
#        or {"id":"ask-1234","status":"error",...} that says why. Exit 1 when nobody answers in
#        TIMEOUT (10) seconds. Needs mosquitto-clients.
# Broker with users or TLS: put the options (-u NAME, -P WORD, --cafile FILE), one a line, into
#        ~/.config/mosquitto_pub and ~/.config/mosquitto_sub, which both programs read.
set -euo pipefail

broker=(-h "${BROKER:-localhost}" -p "${PORT:-1883}" -q 1)
branch="${BRANCH:-gaisnet/v1/north/bearings/p1}"
model="${MODEL:-bearing}"
samples="${SAMPLES:-2048}" # the node's `meta` topic tells the model's window
id="ask-$$"

request=$(awk -v n="$samples" -v id="$id" 'BEGIN {
  printf "{\"id\":\"%s\",\"input\":[", id
  for (i = 0; i < n; i++) {
    t = i % 300
    printf "%s%.4f", (i ? "," : ""), exp(-t / 40) * sin(t * 0.9) + 0.1 * sin(i * 0.02)
  }
  printf "]}"
}')

# Listen first: -c makes a session that the broker keeps, -E ends once it is there.
listen=(mosquitto_sub "${broker[@]}" -i "$id" -t "$branch/reply/infer")
"${listen[@]}" -c -E
trap '"${listen[@]}" -E' EXIT # a connection without -c: the broker forgets the session
mosquitto_pub "${broker[@]}" -t "$branch/infer/$model" -s <<<"$request"
# Others may ask at the same time: our answer is the one with our id.
grep -m 1 "\"$id\"" < <("${listen[@]}" -c -W "${TIMEOUT:-10}" 2>/dev/null) || {
  echo "no answer on $branch/reply/infer: is the node online ($branch/status)?" >&2
  exit 1
}
