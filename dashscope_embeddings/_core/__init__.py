"""Decides what to send and what a reply means: no socket, no clock, no event loop, no sleep.

The road of one text:

    langchain.py, llama_index/    embed_documents(texts): asks the client, returns lists
    client.py                     EmbeddingClient.embed: requests in flight, results in order
      _core/text_inputs.py          refuses what is no text before anything is spent
      _core/planning.py             texts → batches: deduplicates, cuts by rows and tokens
      _core/exchange.py             one batch: acquire a permit → Send → read → retry, split or return
      _core/rate_limiter.py           when the next request may go; never waits itself
      _core/protocol.py               request body and reply: the only module that knows the service's JSON
      _core/failures.py               status, code, message → an error and what to do about it
      _runtime/drivers.py           performs the steps on threads; async_drivers.py on an event loop
      _core/results.py              outcomes → vectors, in the order of the texts
"""
