#!/usr/bin/env bash
# Shows: steering a node with plain mosquitto_pub, and its reply.
# Run:   examples/mqtt/command.sh status
#        examples/mqtt/command.sh model.list
#        BRANCH=gaisnet/v1/_/_/cloud PORT=1885 examples/mqtt/command.sh round.start
#        examples/mqtt/command.sh pause '{"args":{}}'     (a second argument is the JSON itself)
# Expect: {"id":"cmd-1234","status":"ok","data":{...},"error":null}
#        A wrong command gets "status":"error" with what was wrong and the way out. Exit 1 when
#        nobody replies in TIMEOUT (10) seconds. Commands that change what is served or trusted need a
#        signature: gaisnet cmd sign --help. Needs mosquitto-clients.
# Broker with users or TLS: put the options (-u NAME, -P WORD, --cafile FILE), one a line, into
#        ~/.config/mosquitto_pub and ~/.config/mosquitto_sub, which both programs read.
set -euo pipefail

broker=(-h "${BROKER:-localhost}" -p "${PORT:-1883}" -q 1)
branch="${BRANCH:-gaisnet/v1/north/bearings/p1}"
name="${1:?which command? status, model.list, round.start, pause or resume}"
id="cmd-$$"
# An exp of a minute: the command must not surprise anybody when it is delivered late.
payload="${2:-{\"id\":\"$id\",\"exp\":$(($(date +%s) * 1000 + 60000))\}}"

# Listen first: -c makes a session that the broker keeps, -E ends once it is there.
listen=(mosquitto_sub "${broker[@]}" -i "$id" -t "$branch/reply/$name")
"${listen[@]}" -c -E
trap '"${listen[@]}" -E' EXIT # a connection without -c: the broker forgets the session
mosquitto_pub "${broker[@]}" -t "$branch/cmd/$name" -m "$payload"
"${listen[@]}" -c -C 1 -W "${TIMEOUT:-10}" 2>/dev/null || {
  echo "no reply on $branch/reply/$name: is the node online ($branch/status)?" >&2
  exit 1
}
