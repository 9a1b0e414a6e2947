import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.util.Properties;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * The job of `benchmarks.restart` by Kafka Streams: java RestartJob BROKER FOLDER INPUT OUTPUT.
 *
 * A customer has a row for each of eight days; its first eight bytes are the orders of the day, the rest is there for
 * its size. An order adds one to the last day's row, and its output is the sum over the customer's rows.
 */
public class RestartJob {
    public record Order(String customer) {}

    public record Told(String customer, long orders) {}

    static final String STORE = "orders";
    static final int LAST_DAY = 7;
    static final ObjectMapper JSON =
        new ObjectMapper().configure(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES, false);
    static final ObjectReader ORDER = JSON.readerFor(Order.class);
    static final ObjectWriter TOLD = JSON.writerFor(Told.class);

    static class Counting implements Processor<String, Order, String, Told> {
        private ProcessorContext<String, Told> context;
        private KeyValueStore<String, byte[]> rows;

        @Override
        public void init(ProcessorContext<String, Told> context) {
            this.context = context;
            rows = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<String, Order> record) {
            String customer = record.value().customer();
            String today = customer + "/" + LAST_DAY;
            byte[] row = rows.get(today);
            row = row == null ? new byte[Long.BYTES] : row.clone();
            ByteBuffer.wrap(row).putLong(0, ByteBuffer.wrap(row).getLong(0) + 1);
            rows.put(today, row);
            long orders = 0;
            try (KeyValueIterator<String, byte[]> days = rows.range(customer + "/0", today)) {
                while (days.hasNext()) {
                    KeyValue<String, byte[]> day = days.next();
                    orders += ByteBuffer.wrap(day.value).getLong();
                }
            }
            context.forward(record.withValue(new Told(customer, orders)));
        }
    }

    static <T> Serde<T> json(ObjectReader reader, ObjectWriter writer) {
        Serializer<T> to = (topic, value) -> {
            try {
                return writer.writeValueAsBytes(value);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
        Deserializer<T> from = (topic, bytes) -> {
            try {
                return reader.readValue(bytes);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
        return Serdes.serdeFrom(to, from);
    }

    public static void main(String[] arguments) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "restart-kafka-streams");
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[1]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        // A static member has its place again as soon as it is back; another one would wait until its last life's
        // session is over, after a clean stop too.
        settings.put(StreamsConfig.consumerPrefix("group.instance.id"), "worker");
        settings.put(StreamsConfig.consumerPrefix("session.timeout.ms"), 6_000);
        settings.put(StreamsConfig.consumerPrefix("heartbeat.interval.ms"), 300);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        for (String prefix : new String[] {"consumer.", "restore.consumer."}) {
            settings.put(prefix + "max.poll.records", 10_000);
            settings.put(prefix + "max.partition.fetch.bytes", 4 << 20);
        }

        StoreBuilder<KeyValueStore<String, byte[]>> store = Stores.keyValueStoreBuilder(
            Stores.persistentKeyValueStore(STORE), Serdes.String(), Serdes.ByteArray()
        );
        StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(store);
        builder.stream(arguments[2], Consumed.<String, Order>with(Serdes.String(), json(ORDER, null)))
            .process(Counting::new, STORE)
            .to(arguments[3], Produced.<String, Told>with(Serdes.String(), json(null, TOLD)));

        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
