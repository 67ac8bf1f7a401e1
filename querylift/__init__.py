"""Query expansion in front of an OpenSearch or Elasticsearch cluster."""

__version__ = "0.1.0"
