#!/usr/bin/env bash
# Shows: asking a model that writes text, with the words on the screen as they come.
# Run:   examples/mqtt/write.sh "Bucket teeth worn, "
#        BRANCH=gaisnet/v1/north/_/edge-north MODEL=maintenance PORT=1884 examples/mqtt/write.sh "Leak at "
# Expect: the text that continues yours, piece by piece; at the end, on standard error, the whole answer
#        as the node sent it: {"id":"write-1234","status":"ok","text":"...","finish":"stop",...}
#        or {"id":"write-1234","status":"error",...} that says why, and exit 1. Ctrl-C cancels the
#        request. Needs mosquitto-clients and jq.
# Broker with users or TLS: put the options (-u NAME, -P WORD, --cafile FILE), one a line, into
#        ~/.config/mosquitto_pub and ~/.config/mosquitto_sub, which both programs read.
set -euo pipefail

broker=(-h "${BROKER:-localhost}" -p "${PORT:-1883}" -q 1)
branch="${BRANCH:-gaisnet/v1/north/_/edge-north}"
model="${MODEL:-maintenance}"
timeout="${TIMEOUT:-30}" # seconds; the node stops writing then, whether we listen or not
id="write-$$"

request=$(jq -cn --arg id "$id" --arg prompt "${1:?say what is to be continued}" \
  --argjson tokens "${TOKENS:-60}" --argjson ms "$((timeout * 1000))" \
  '{id: $id, prompt: $prompt, max_tokens: $tokens, stream: true, deadline_ms: $ms}')

# Pieces are QoS 0, which a broker keeps for nobody who is away: so we ask once we are heard to listen,
# which -d tells on a line of its own.
listen() {
  exec stdbuf -oL mosquitto_sub "${broker[@]}" -d -W "$((timeout + 5))" \
    -t "$branch/stream/$id" -t "$branch/reply/infer" 2>/dev/null
}
say() { mosquitto_pub "${broker[@]}" -t "$branch/infer/$model" -s <<<"$1"; }
trap 'say "{\"id\":\"$id\",\"cancel\":true}"; exit 130' INT
exec {heard}< <(listen)
listener=$!
trap 'kill "$listener" 2>/dev/null || true' EXIT

while read -r line <&"$heard"; do
  if [[ $line == *SUBACK* ]]; then say "$request"; fi
  # Others may ask at the same time: ours has our id.
  [[ $line == "{"* && $(jq -r .id <<<"$line") == "$id" ]] || continue
  if [[ $(jq 'has("n")' <<<"$line") == true ]]; then
    jq -j .text <<<"$line"
  else
    printf '\n'
    printf '%s\n' "$line" >&2
    [[ $(jq -r .status <<<"$line") == ok ]] && exit 0
    exit 1
  fi
done
echo "no answer on $branch/reply/infer: is the node online ($branch/status)?" >&2
exit 1
