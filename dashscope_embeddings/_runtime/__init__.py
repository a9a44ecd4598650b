"""Performs the steps that `_core` yields: sockets, threads, event loops, clocks, files. No decisions about requests.

thread_drivers           and async_drivers: run flows on threads, and in tasks of an event loop
flow_runs                what the two have in common
client_base              the parts of a client that sync and async calls share
job                      one call of a client: its exchanges, results, bill and callbacks
transport                sends requests; with http_request, reply_body, deadlines, connect_errors, file_transfer
environment              proxies and certificates
sync_connections         the connection pool for threads; async_connections: for a loop; core_http: for both
shared_pools             the pools of clients with equal settings
deferred_signals         lets the main thread send a request that no signal handler can break
thread_pool              daemon threads, and waiting that a signal handler cannot break
files                    exclusive and atomic writes
progress                 the bar of a call
"""
