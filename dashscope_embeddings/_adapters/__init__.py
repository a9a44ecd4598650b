"""Parts that the adapters of LangChain and LlamaIndex share. Only the two langchain modules import a framework.

base, sparse            settings as pydantic fields, and the client made from them
hybrid, hybrid_cache    dense and sparse vectors of a pair of adapters from one billed request
partial_results         completes what a cache has, and the errors of calls for the rest
vector_cache            a cache in front of the client; langchain_cache stores it in a LangChain byte store
sparse_index            sparse vectors in memory, and a search in them; sparse_retriever, langchain_retriever: with it
flows                   one implementation for a sync method and its asynchronous version
"""
