"""Live weight updates over vLLM's own weight-transfer API: the trainer's weights go into running servers, bucket by
bucket.

    sender.py    the sending end, in the trainer's rank 0: order of the calls, thread, deadline
    gloo.py      the communicator without GPUs
    nccl.py      the communicator with GPUs: vLLM's own
    receiver.py  the receiving end for gloo, in vLLM's workers (for NCCL vLLM has one)

One update, into all servers at once: pause (keep running requests, clear the caches) -> init (where there is no
communicator yet)
-> start -> update, while the buckets are broadcast -> finish(version) -> resume -> the probe's answer (probe.py).
Nothing resumes after a failure: vLLM with half its weights on the meta device dies when it is resumed, so a failed
update raises
EngineError, the communicator is aborted and the servers have to be restarted from an export. What was sampled between
resume and a probe that is not passed carries a version that nothing else does (UnprovenError), and is never trained.
"""

from coderepairrl.weights.sender import Address, Sent, UnprovenError, WeightSender

__all__ = ["Address", "Sent", "UnprovenError", "WeightSender"]
