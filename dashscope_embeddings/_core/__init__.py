"""Decides what to send and what a reply means: no socket, no clock, no event loop, no sleep.

The path of one text:

    langchain.py, llama_index/    embed_documents(texts): calls the client, returns lists
    client.py                     EmbeddingClient.embed: concurrent requests, results in order
      _core/text_inputs.py          validates texts before anything is sent
      _core/planning.py             texts → batches: deduplicates, limits rows and tokens
      _core/exchange.py             one batch: acquire a permit → Send → read → retry, split or return
      _core/rate_limiter.py           when the next request may be sent; never waits itself
      _core/protocol.py               request body and reply: only this module and its helpers know the JSON
      _core/reply_reader.py           a driver's answer → vectors or an error
      _core/failures.py               status, code, message → an exception and the action to take
      _runtime/drivers.py           performs the steps on threads; async_drivers.py on an event loop
      _core/results.py              outcomes → vectors, in the order of the texts
"""
