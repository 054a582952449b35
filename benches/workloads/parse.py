# Parses a JSON document over and over, for the overhead benchmark. Waits for the end of its input first.
import json
import sys

sys.stdin.read()
rows = [{"id": i, "name": f"row {i}", "tags": ["a" * (i % 40), "b"], "value": i / 7} for i in range(2000)]
document = json.dumps(rows)
for _ in range(80):
    json.loads(document)
