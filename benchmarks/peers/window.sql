-- The window job by Flink SQL: the value as of each event is an OVER aggregate within the user's minute. By the time of
-- processing: a user's events come in order of their own time, so that it tells the same as ROWS by row time, which
-- holds events back until the watermark and sorts them, at three times the cost.
CREATE TABLE payments (
  `user` STRING, ts BIGINT, amount DOUBLE, item STRING,
  taken AS PROCTIME()
) WITH (
  'connector' = 'kafka', 'topic' = '{input}', 'properties.bootstrap.servers' = '{broker}',
  'properties.group.id' = 'window-flink', 'properties.max.partition.fetch.bytes' = '4194304',
  'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = '{bounded}', 'format' = 'json'
);

CREATE TABLE told (`user` STRING, ts BIGINT, `count` BIGINT, `sum` DOUBLE) WITH (
  'connector' = 'kafka', 'topic' = '{output}', 'properties.bootstrap.servers' = '{broker}',
  'key.format' = 'raw', 'key.fields' = 'user', 'value.format' = 'json',
  'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = 'window-flink',
  'properties.transaction.timeout.ms' = '600000', 'properties.batch.size' = '262144', 'properties.linger.ms' = '50'
);

INSERT INTO told
SELECT `user`, ts, COUNT(*) OVER minute_so_far, SUM(amount) OVER minute_so_far FROM payments
WINDOW minute_so_far AS (
  PARTITION BY `user`, ts / 60000 ORDER BY taken ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
);
