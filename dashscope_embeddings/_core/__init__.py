"""Decides what to send and what a reply means: no socket, no clock, no event loop, no sleep.

The road of one text:

    langchain.py, llama_index/    embed_documents(texts): asks the client, returns lists
    client.py                     EmbeddingClient.embed: requests in flight, results in order
      _core/text_inputs.py          refuses what is no text, before anything is spent
      _core/planning.py             texts → batches: deduplicates, cuts by rows and tokens
      _core/exchange.py             one batch: acquire a permit → Send → read → retry, split or return
      _core/rate_limiter.py           when the next request may go; never waits itself
      _core/protocol.py               request body and reply: the only module that knows the service's JSON
      _core/reply_reader.py           a reply, and whether it belongs to this request
      _core/failures.py               a refusal, a broken reply or no reply → an error and what to do about it
      _runtime/drivers.py           performs the steps on threads; async_drivers.py on an event loop
      _core/results.py              outcomes → vectors, in the order of the texts

The words:

    text          what the caller passes; its index is its place in the caller's input
    row           a text, or a chunk of a long one, within a request
    batch         the rows of one request before it is sent; not the service's Batch route (corpus/batch)
    exchange      a generator: the story of one batch from its first try to its outcome
    step          what an exchange asks a driver to do: Send or Sleep
    outcome       vectors and errors of a batch, by row
    action        what to do about an error: retry, back off, reduce the batch, truncate, bisect, abort
    permit        one request's place with the rate limiter
    partial       index → vectors of what arrived before a call failed; failed: the indices without vectors
    component     the dense or the sparse vector of a text; hybrid: both from one request
    observed      learned from the service's replies: limits of rows and tokens, the quota
    checkpoint    what a corpus run has paid for, on disk (the file ends in .ledger)
"""
