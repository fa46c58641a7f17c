"""scripts/train_grpo.py, whose trainer once, at version 2, sends the head of before: so looks a server that kept it."""

import importlib.util
import sys

from coderepairrl.weights import WeightSender

send, before = WeightSender.send, {}


def sends_an_old_head(self, servers, version, layout, buckets, probe=None):
    def changed():
        for bucket in buckets:
            old = {name: before.get(name) for name, _ in bucket}
            before.update({name: tensor.clone() for name, tensor in bucket if name == "lm_head.weight"})
            yield [(name, old[name] if version == 2 and old[name] is not None else tensor) for name, tensor in bucket]

    return send(self, servers, version, layout, changed(), probe)


WeightSender.send = sends_an_old_head
spec = importlib.util.spec_from_file_location("train_grpo", "scripts/train_grpo.py")
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.main(sys.argv[1:])  # which starts its ranks with this file, too
