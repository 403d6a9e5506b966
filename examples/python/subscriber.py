#!/usr/bin/env python3
"""Shows: reading gaisnet's answers from Python, with quality, age and presence of the nodes.

Run:    pip install 'paho-mqtt>=2,<3'
        python examples/python/subscriber.py --broker localhost --port 1883
        python examples/python/subscriber.py --count 5      (ends after 5 answers)

Expect: a line when a node comes or goes, and one for each answer:
        north/p1 online, roles trainer inferencer, round 3
        north/p1 bearing v4: outer 97 % [good] 3.5 ms
        An answer that may not be believed is marked [uncertain], [bad] or [stale].
"""

import argparse
import json
import sys

import paho.mqtt.client as mqtt


def describe_status(where, telegram):
    """One line about a node's presence."""
    if not telegram["online"]:
        return f"{where} offline"
    return f"{where} online, roles {' '.join(telegram['roles'])}, round {telegram['round']}"


def describe_answer(where, model, telegram):
    """One line about an answer. `value`, `label` and `confidence` are null when there is none."""
    head = f"{where} {model} v{telegram['model_version']}"
    if telegram["value"] is None:
        return f"{head}: no answer [{telegram['quality']}]"
    answer = telegram["label"] or telegram["value"]
    sure = "" if telegram["confidence"] is None else f" {telegram['confidence']:.0%}".replace("%", " %")
    return f"{head}: {answer}{sure} [{telegram['quality']}] {telegram['latency_ms']:.1f} ms"


def main():
    parser = argparse.ArgumentParser(description="prints gaisnet's answers and the nodes' presence")
    parser.add_argument("--broker", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--prefix", default="gaisnet")
    parser.add_argument("--user", help="user name; the password comes from --password")
    parser.add_argument("--password")
    parser.add_argument("--count", type=int, help="end after this many answers")
    args = parser.parse_args()
    answers = 0

    def on_connect(client, _userdata, _flags, reason, _properties):
        if reason.is_failure:
            sys.exit(f"the broker refused us: {reason}")
        branch = f"{args.prefix}/v1/+/+/+"
        # Subscribing here, not once at the start, keeps us subscribed after a reconnect.
        client.subscribe([(f"{branch}/status", 1), (f"{branch}/inference/+", 1)])

    def on_message(client, _userdata, message):
        nonlocal answers
        levels = message.topic.removeprefix(f"{args.prefix}/v1/").split("/")
        site, _line, node, kind, *rest = levels
        try:
            telegram = json.loads(message.payload)
            if kind == "status":
                print(describe_status(f"{site}/{node}", telegram), flush=True)
                return
            print(describe_answer(f"{site}/{node}", rest[0], telegram), flush=True)
        except (ValueError, KeyError, TypeError) as error:
            print(f"{message.topic}: not readable: {error!r}", file=sys.stderr)
            return
        answers += 1
        if args.count and answers >= args.count:
            client.disconnect()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    if args.user:
        client.username_pw_set(args.user, args.password)
    client.on_connect = on_connect
    client.on_message = on_message
    try:
        client.connect(args.broker, args.port, keepalive=30)
    except OSError as error:
        sys.exit(f"no broker at {args.broker}:{args.port}: {error}")
    client.loop_forever()


if __name__ == "__main__":
    main()
