"""Decides what to send and what a reply means. No socket, no event loop, no sleep; the clock is passed in.

The way of `DashScopeEmbeddings.embed_documents(texts)`. A module does the next part of the work of the nearest one
above that is indented less. Flows (see below) are run by _runtime/flow_runs.py, which makes the calls and performs the
steps that they yield:

    langchain.py                      checks the list; runs the flow of the next one; returns lists of floats
      _adapters/vector_cache.py         a flow; with an `embeddings_cache`, only the texts that it lacks go on
        _adapters/hybrid.py               a flow: calls the client; if paired with a sparse adapter, for both components
          client.py                         EmbeddingClient.embed; _adapters/base.py made the client from its fields
            _core/text_inputs.py              refuses invalid texts before anything is sent
            _core/planning.py                 texts → batches, made lazily: without duplicates, cut by rows and tokens
            _runtime/job.py                   makes one exchange for each batch, when a driver has use for it
            _runtime/thread_drivers.py        runs exchanges: several on threads, a single one on the caller's if it can
              _core/exchange.py                 a flow: Send → answer; then retry, split or return
                _core/protocol.py                 writes the body
                _core/rate_limiter.py             gives a permit, or says how long to wait: the driver waits
                _core/planning.py                 splits a request that the service refused
              _runtime/transport.py             performs Send
                _runtime/sync_connections.py      a pool of httpcore's connections; shares core_http.py
                _runtime/http_request.py          sends the request, reads the bytes of the reply
                  _core/reply_reader.py             called while the connection is held
                    _core/failures.py                 refusal or broken reply → an error with an action
                    _core/protocol.py                 reply → vectors; with reply_fields.py, which has the JSON
                    _core/stale_replies.py            is it the reply to another request?
            _core/results.py                  outcomes → vectors, in the order of the texts

llama_index/dense.py takes the same way. On an event loop, `aembed` and _runtime/async_drivers.py take the place of
`embed` and thread_drivers.py. A single text that need not be cut becomes no job: _core/text_batcher.py asks the limiter
for it, and texts that wait at the same time share one exchange; equal ones, one row.

The words:

    text          what the caller passes; its index is its place in the caller's input
    slot          a text of the input, and the rows that its vectors come from
    row           a text, or a part of a long one, within a batch; equal texts share a row
    chunk         what a request sends of a row: all of it or, after a refusal, a part
    batch         the rows of one request before it is sent; not the service's Batch route (corpus/batch)
    exchange      a generator: everything that happens to one batch, from its first request to its outcome
    flow          a generator that yields work to whoever runs it: steps in _core, calls in _adapters/flows.py
    step          what such a flow yields: Send, Sleep, Start, or to ask the user's limiter
    driver        runs flows and performs what they yield; decides nothing about requests
    job           all batches of one call of the client; in corpus/batch, one corpus on the Batch route
    outcome       vectors and errors of a batch, by row
    action        what to do about an error: retry, back off, reduce the batch, truncate, bisect, abort
    permit        one request's state in the rate limiter
    partial       index → vectors of what arrived before a call failed; failed: the indices without vectors
    component     the dense or the sparse vector of a text; hybrid: both from one request
    observed      learned from the service's replies: limits of rows and tokens, the quota
    checkpoint    what a corpus run has paid for, on disk (the file ends in .ledger)
"""
