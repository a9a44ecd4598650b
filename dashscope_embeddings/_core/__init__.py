"""Decides what to send and what a reply means. No socket, no event loop, no sleep; the clock is passed in.

The way of one document:

    langchain.py, llama_index/      embed_documents(texts): checks the list, returns lists of floats
    _adapters/hybrid.py             calls the client; with a paired sparse adapter also fills its cache
    client.py                       EmbeddingClient.embed: validates, plans, collects the results in order
      _core/text_inputs.py            refuses invalid texts before anything is sent
      _core/planning.py               texts → batches: removes duplicates, cuts by rows and tokens
      _runtime/client_base.py         makes one exchange for each batch
      _runtime/thread_drivers.py      runs the exchanges on threads (async_drivers.py: on an event loop):
        _core/exchange.py               body → permit → Send → reply; then retry, split or return
          _core/protocol.py               writes the body, parses the reply: the only module that knows the JSON
          _core/rate_limiter.py           says how long to wait; the driver waits
        _runtime/transport.py           sends; http_request.py reads the reply
          _core/reply_reader.py           parses the reply while its connection is held: may it be reused?
          _core/failures.py               refusal, broken reply or no reply → an error with an action
      _core/results.py                outcomes → vectors, in the order of the texts

A single text goes through _core/text_batcher.py instead of planning: texts that wait at the same time share a request.

The words:

    text          what the caller passes; its index is its place in the caller's input
    row           a text, or a part of a long one, within a batch
    batch         the rows of one request before it is sent; not the service's Batch route (corpus/batch)
    exchange      a generator: everything that happens to one batch, from its first request to its outcome
    flow          a generator that yields work to a driver: steps in _core, calls in _adapters/flows.py
    step          what an exchange yields: Send or Sleep
    driver        runs flows and performs what they yield; decides nothing
    outcome       vectors and errors of a batch, by row
    action        what to do about an error: retry, back off, reduce the batch, truncate, bisect, abort
    permit        one request's state in the rate limiter
    partial       index → vectors of what arrived before a call failed; failed: the indices without vectors
    component     the dense or the sparse vector of a text; hybrid: both from one request
    observed      learned from the service's replies: limits of rows and tokens, the quota
    checkpoint    what a corpus run has paid for, on disk (the file ends in .ledger)
"""
