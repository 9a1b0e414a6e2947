import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/**
 * The window job by Kafka Streams: java WindowJob BROKER FOLDER INPUT OUTPUT [SETTING=VALUE...].
 *
 * A processor over a cached window store, rather than the DSL's aggregate: that tells of each event only without the
 * cache, and then writes state and changelog for each of them.
 */
public class WindowJob {
    public record Event(String user, long ts, double amount, String item) {}

    public record Told(String user, long ts, long count, double sum) {}

    record Total(long count, double sum) {}

    static final Duration WINDOW = Duration.ofSeconds(60);
    static final String STORE = "totals";
    static final ObjectMapper JSON = new ObjectMapper();
    static final ObjectReader EVENT = JSON.readerFor(Event.class);
    static final ObjectWriter TOLD = JSON.writerFor(Told.class);

    static class Counting implements Processor<String, Event, String, Told> {
        private ProcessorContext<String, Told> context;
        private WindowStore<String, Total> totals;

        @Override
        public void init(ProcessorContext<String, Told> context) {
            this.context = context;
            totals = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<String, Event> record) {
            Event event = record.value();
            long start = event.ts() - event.ts() % WINDOW.toMillis();
            Total before = totals.fetch(record.key(), start);
            Total now = before == null
                ? new Total(1, event.amount())
                : new Total(before.count() + 1, before.sum() + event.amount());
            totals.put(record.key(), now, start);
            context.forward(record.withValue(new Told(event.user(), event.ts(), now.count(), now.sum())));
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

    static Serde<Total> total() {
        Serializer<Total> to = (topic, total) -> total == null
            ? null
            : ByteBuffer.allocate(16).putLong(total.count()).putDouble(total.sum()).array();
        Deserializer<Total> from = (topic, bytes) -> {
            if (bytes == null) {
                return null;
            }
            ByteBuffer buffer = ByteBuffer.wrap(bytes);
            return new Total(buffer.getLong(), buffer.getDouble());
        };
        return Serdes.serdeFrom(to, from);
    }

    public static void main(String[] arguments) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "window-kafka-streams");
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[1]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        // Rather than ten times as often, as is the default: a key is written once for each commit.
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1_000);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256 << 20);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        settings.put(StreamsConfig.consumerPrefix("max.poll.records"), 10_000);
        settings.put(StreamsConfig.consumerPrefix("max.partition.fetch.bytes"), 4 << 20);
        settings.put(StreamsConfig.producerPrefix("batch.size"), 256 << 10);
        settings.put(StreamsConfig.producerPrefix("linger.ms"), 100);
        for (int n = 4; n < arguments.length; n++) {
            String[] setting = arguments[n].split("=", 2);
            settings.put(setting[0], setting[1]);
        }

        Duration kept = Duration.ofHours(1);
        StoreBuilder<WindowStore<String, Total>> store = Stores.windowStoreBuilder(
            Stores.persistentWindowStore(STORE, kept, WINDOW, false), Serdes.String(), total()
        ).withCachingEnabled();
        StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(store);
        Consumed<String, Event> in = Consumed.<String, Event>with(Serdes.String(), json(EVENT, null))
            .withTimestampExtractor((record, before) -> ((Event) record.value()).ts());
        builder.stream(arguments[2], in)
            .process(Counting::new, STORE)
            .to(arguments[3], Produced.<String, Told>with(Serdes.String(), json(null, TOLD)));

        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
    }
}
