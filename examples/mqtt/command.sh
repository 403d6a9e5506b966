#!/usr/bin/env bash
# Shows: steering a node with plain mosquitto_pub, and its reply.
# Run:   examples/mqtt/command.sh status
#        examples/mqtt/command.sh model.list
#        BRANCH=gaisnet/v1/_/_/cloud PORT=1885 examples/mqtt/command.sh round.start
#        examples/mqtt/command.sh pause '{"args":{}}'     (a second argument is the JSON itself)
# Expect: {"id":"cmd-1234","status":"ok","data":{...},"error":null}
#        A wrong command gets "status":"error" with what was wrong and the way out. Exit 1 when
#        nobody replies in 10 seconds. Commands that change what is served or trusted need a
#        signature: gaisnet cmd sign --help. Needs mosquitto-clients.
set -euo pipefail

broker=(-h "${BROKER:-localhost}" -p "${PORT:-1883}")
branch="${BRANCH:-gaisnet/v1/north/bearings/p1}"
name="${1:?which command? status, model.list, round.start, pause or resume}"
# An exp of a minute: the command must not surprise anybody when it is delivered late.
payload="${2:-{\"id\":\"cmd-$$\",\"exp\":$(($(date +%s) * 1000 + 60000))\}}"

# mosquitto_rr listens on the reply topic, publishes the command, prints the first reply.
timeout 10 mosquitto_rr "${broker[@]}" -q 1 -t "$branch/cmd/$name" -e "$branch/reply/$name" \
  -m "$payload" || {
  echo "no reply on $branch/reply/$name: is the node online ($branch/status)?" >&2
  exit 1
}
