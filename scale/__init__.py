"""For collections beyond one machine: Ray, Milvus, remote datasets. All optional."""
