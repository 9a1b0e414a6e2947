"""The local broker: the Kafka protocol over RocksDB, for one machine."""
