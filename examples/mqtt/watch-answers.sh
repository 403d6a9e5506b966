#!/usr/bin/env bash
# Shows: every answer of the model `bearing` on all devices of a site, as SCADA would see it.
# Run:   gaisnet demo            (in another terminal; or your own nodes)
#        examples/mqtt/watch-answers.sh
#        BROKER=broker.site PORT=1883 COUNT=10 examples/mqtt/watch-answers.sh
# Expect: first the last answer of each device (retained), then a line with each new one:
#        gaisnet/v1/north/bearings/p1/inference/bearing {"value":2.0,"label":"outer",...}
#        Ends after COUNT answers, without COUNT with Ctrl-C. Needs mosquitto-clients.
# Broker with users or TLS: put the options (-u NAME, -P WORD, --cafile FILE), one a line, into
#        ~/.config/mosquitto_pub and ~/.config/mosquitto_sub, which both programs read.
set -euo pipefail

mosquitto_sub -h "${BROKER:-localhost}" -p "${PORT:-1883}" -q 1 -v \
  ${COUNT:+-C "$COUNT"} \
  -t "${PREFIX:-gaisnet}/v1/+/+/+/inference/${MODEL:-bearing}"
