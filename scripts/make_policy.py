"""Makes the small policy and its demonstrations: tokenizer, random weights, drills.jsonl, demonstrations.jsonl.

    python scripts/make_policy.py configs/policy/small.yaml [a.b=c ...]

OUTPUT/inputs.json says what made them; the same command makes what isn't there yet, others need another `output:`.
Rows are conversations in OpenAI chat format ({"messages": [...], "tools": [...]}); scripts/train_sft.py reads them.
"""

import json
import os
import sys
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from coderepairrl.config import Config, load
from coderepairrl.demonstrations.expert import DemonstrationsConfig, generate
from coderepairrl.files import whole, write_json
from coderepairrl.models.small_policy import SmallPolicyConfig, initial_model, save, train_tokenizer
from coderepairrl.run import inputs
from coderepairrl.run.program import program
from coderepairrl.scaffolds.terminal import TOOLS


class MakePolicyConfig(Config):
    output: str  # the folder that is written
    system_prompt: str  # of the demonstrations
    policy: SmallPolicyConfig = SmallPolicyConfig()
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()


def write_conversations(kind: str, config: MakePolicyConfig, path: Path) -> None:
    total = config.demonstrations.drills if kind == "drill" else config.demonstrations.episodes
    with whole(path) as temporary, temporary.open("w") as file:
        rows = generate(kind, config.demonstrations, config.system_prompt, os.cpu_count() or 1)
        for messages in tqdm(rows, total=total, desc=path.stem, unit="row", mininterval=1):
            file.write(json.dumps({"messages": messages, "tools": TOOLS}) + "\n")


@program(MakePolicyConfig)
def main(arguments: list[str]) -> None:
    config = load(MakePolicyConfig, arguments[0], arguments[1:])
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    now = inputs.of(config)
    made = any(output.glob("*.jsonl")) or (output / "initial").exists()
    inputs.compare(output / inputs.RECORD, now, (), config=config, made=made, remedy="take another `output:`")
    write_json(output / inputs.RECORD, now)
    for kind, name in (("drill", "drills"), ("demonstration", "demonstrations")):
        if not (output / f"{name}.jsonl").exists():
            write_conversations(kind, config, output / f"{name}.jsonl")
    if not (output / "initial").exists():
        with (output / "demonstrations.jsonl").open() as file:
            rows = [json.loads(line) for line in islice(file, 3000)]
        # the template needs a tokenizer to render, and the tokenizer needs rendered text: any vocabulary will do to
        # render
        blank = train_tokenizer([], config.policy.vocabulary, config.policy.context)
        texts = [blank.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False) for row in rows]
        tokenizer = train_tokenizer(texts, config.policy.vocabulary, config.policy.context)
        model = initial_model(tokenizer, config.policy)
        save(model, tokenizer, output / "initial")
    print(f"policy: {output / 'initial'}")


if __name__ == "__main__":
    main(sys.argv[1:])
