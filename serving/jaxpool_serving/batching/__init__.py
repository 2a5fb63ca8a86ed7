"""From requests that arrive one by one to device batches: who is admitted, who goes next, which rows share a batch.

`batcher` is the only one that speaks to an engine; `admission`, `request_queue` and `batch_selection` are its parts,
without threads, sockets or clocks of their own. Nothing here knows HTTP.
"""
