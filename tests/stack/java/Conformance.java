import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.*;

/**
 * What Kafka's own clients see of a broker, printed line by line; two brokers that are alike print alike.
 *
 * <p>Clients keep their default settings, but for the time-outs that would make a run long. Whatever differs between
 * two runs of one broker (producer ids, member ids, times) is not printed.
 */
public final class Conformance {
    private static final Duration WAIT = Duration.ofSeconds(20);
    private static String brokers;
    private static Admin admin;

    public static void main(String[] arguments) throws Exception {
        brokers = arguments[0];
        try (Admin made = Admin.create(Map.of("bootstrap.servers", (Object) brokers))) {
            admin = made;
            part("producers", Conformance::producers);
            part("topics", Conformance::topics);
            part("configs", Conformance::configs);
            part("records", Conformance::records);
            part("range", () -> sharing("range", "org.apache.kafka.clients.consumer.RangeAssignor"));
            part("default", () -> sharing("default", null));
            part("cooperative", () -> sharing("coop", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"));
            part("static", Conformance::staticMember);
            part("groups", Conformance::groups);
            part("transactions", Conformance::transactions);
            part("zombies", Conformance::zombies);
            part("transaction-admin", Conformance::transactionAdmin);
            part("cluster", Conformance::cluster);
        }
        say("end", "done");
        System.exit(0);
    }

    // Saying.

    private interface Part {
        void run() throws Exception;
    }

    private static String current = "";

    private static void part(String name, Part act) {
        current = name;
        try {
            act.run();
        } catch (Throwable error) {
            say("FAILED", name(error) + ": " + error.getMessage());
        }
    }

    private static void say(String what, Object value) {
        System.out.println(current + " " + what + ": " + value);
    }

    private static String name(Throwable error) {
        Throwable cause = error instanceof ExecutionException && error.getCause() != null ? error.getCause() : error;
        return cause.getClass().getSimpleName();
    }

    /** What an act gives, or the name of what it throws. */
    private static void outcome(String what, Callable<Object> act) {
        Object seen;
        try {
            seen = act.call();
        } catch (Throwable error) {
            seen = name(error);
        }
        say(what, seen);
    }

    /** Asks until the answer is as wanted: Kafka says that something is done a moment before all of it knows. */
    private static <T> T settled(Callable<T> ask, java.util.function.Predicate<T> wanted) throws Exception {
        long until = System.currentTimeMillis() + WAIT.toMillis();
        T seen = null;
        while (System.currentTimeMillis() < until) {
            try {
                seen = ask.call();
                if (wanted.test(seen)) return seen;
            } catch (Exception error) {
                if (System.currentTimeMillis() + 1000 > until) throw error;
            }
            Thread.sleep(50);
        }
        return seen;
    }

    // Clients.

    private static KafkaProducer<String, String> producer(Object... settings) {
        return new KafkaProducer<>(properties(settings), new StringSerializer(), new StringSerializer());
    }

    private static KafkaConsumer<String, String> consumer(Object... settings) {
        Properties all = properties("auto.offset.reset", "earliest");
        all.putAll(properties(settings));
        return new KafkaConsumer<>(all, new StringDeserializer(), new StringDeserializer());
    }

    private static Properties properties(Object... settings) {
        Properties all = new Properties();
        all.put("bootstrap.servers", brokers);
        for (int at = 0; at < settings.length; at += 2) if (settings[at + 1] != null) all.put(settings[at], settings[at + 1]);
        return all;
    }

    private static void topic(String name, int partitions) throws Exception {
        admin.createTopics(List.of(new NewTopic(name, partitions, (short) 1).configs(Map.of("retention.ms", "-1")))).all().get();
        settled(() -> admin.listOffsets(Map.of(new TopicPartition(name, partitions - 1), OffsetSpec.latest())).all().get(), seen -> true);
    }

    private static List<String> read(Consumer<String, String> consumer, int count) {
        List<String> seen = new ArrayList<>();
        long until = System.currentTimeMillis() + WAIT.toMillis();
        while (seen.size() < count && System.currentTimeMillis() < until)
            for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(100))) seen.add(record.value());
        return seen;
    }

    private static List<String> readAll(String topic, String isolation) {
        try (KafkaConsumer<String, String> consumer = consumer("isolation.level", isolation)) {
            TopicPartition place = new TopicPartition(topic, 0);
            consumer.assign(List.of(place));
            consumer.seekToBeginning(List.of(place));
            long end = consumer.endOffsets(List.of(place)).get(place);
            List<String> seen = new ArrayList<>();
            while (consumer.position(place) < end)
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(100))) seen.add(record.value());
            return seen;
        }
    }

    // Producers.

    private static void producers() throws Exception {
        topic("j-codecs", 1);
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            try (KafkaProducer<String, String> producer = producer("compression.type", codec, "linger.ms", 20)) {
                List<java.util.concurrent.Future<RecordMetadata>> sent = new ArrayList<>();
                for (int number = 0; number < 50; number++)
                    sent.add(producer.send(new ProducerRecord<>("j-codecs", 0, 1000L + number, "key", codec + number + "x".repeat(100), List.of(new RecordHeader("h", codec.getBytes())))));
                say(codec, sent.get(0).get().offset() + ".." + sent.get(49).get().offset());
            }
        }
        try (KafkaConsumer<String, String> consumer = consumer()) {
            consumer.assign(List.of(new TopicPartition("j-codecs", 0)));
            Map<String, Integer> seen = new TreeMap<>();
            int total = 0;
            while (total < 250)
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(200))) {
                    String codec = new String(record.headers().lastHeader("h").value());
                    if (record.value().startsWith(codec) && record.timestamp() == 1000 + record.offset() % 50) seen.merge(codec, 1, Integer::sum);
                    total++;
                }
            say("read", seen);
        }
        for (String acks : List.of("0", "1", "all"))
            try (KafkaProducer<String, String> producer = producer("acks", acks, "enable.idempotence", acks.equals("all"))) {
                RecordMetadata sent = producer.send(new ProducerRecord<>("j-codecs", "a")).get();
                say("acks " + acks, sent.hasOffset());
            }
        outcome("unknown topic", () -> {
            try (KafkaProducer<String, String> producer = producer("max.block.ms", 1500)) {
                return producer.send(new ProducerRecord<>("j-nowhere", "a")).get();
            }
        });
        outcome("too large", () -> {
            admin.createTopics(List.of(new NewTopic("j-small", 1, (short) 1).configs(Map.of("max.message.bytes", "1000")))).all().get();
            try (KafkaProducer<String, String> producer = producer()) {
                return producer.send(new ProducerRecord<>("j-small", "x".repeat(2000))).get();
            }
        });
    }

    // Topics and their configuration.

    private static void topics() throws Exception {
        topic("j-topics", 2);
        outcome("again", () -> admin.createTopics(List.of(new NewTopic("j-topics", 1, (short) 1))).all().get());
        outcome("bad name", () -> admin.createTopics(List.of(new NewTopic("j topics", 1, (short) 1))).all().get());
        outcome("no partitions", () -> admin.createTopics(List.of(new NewTopic("j-none", 0, (short) 1))).all().get());
        outcome("replicas", () -> admin.createTopics(List.of(new NewTopic("j-none", 1, (short) 3))).all().get());
        outcome("bad config", () -> admin.createTopics(List.of(new NewTopic("j-none", 1, (short) 1).configs(Map.of("no.such", "1")))).all().get());
        outcome("bad value", () -> admin.createTopics(List.of(new NewTopic("j-none", 1, (short) 1).configs(Map.of("retention.ms", "soon")))).all().get());
        outcome("only checked", () -> {
            CreateTopicsResult checked = admin.createTopics(List.of(new NewTopic("j-checked", 3, (short) 1)), new CreateTopicsOptions().validateOnly(true));
            return checked.numPartitions("j-checked").get() + " " + checked.replicationFactor("j-checked").get() + " " + admin.listTopics().names().get().contains("j-checked");
        });
        outcome("with default counts", () -> {
            CreateTopicsResult made = admin.createTopics(List.of(new NewTopic("j-defaults", Optional.empty(), Optional.empty())));
            return made.numPartitions("j-defaults").get() + " " + made.replicationFactor("j-defaults").get();
        });
        admin.createPartitions(Map.of("j-topics", NewPartitions.increaseTo(3))).all().get();
        TopicDescription described = settled(() -> admin.describeTopics(List.of("j-topics")).allTopicNames().get().get("j-topics"), seen -> seen.partitions().size() == 3);
        say("described", described.name() + " " + described.isInternal() + " " + described.partitions().stream().map(p -> p.partition() + ":" + p.leader().id() + p.replicas().size() + p.isr().size()).toList());
        outcome("by id", () -> admin.describeTopics(TopicCollection.ofTopicIds(List.of(described.topicId()))).allTopicIds().get().get(described.topicId()).name());
        outcome("unknown id", () -> admin.describeTopics(TopicCollection.ofTopicIds(List.of(Uuid.randomUuid()))).allTopicIds().get());
        outcome("unknown", () -> admin.describeTopics(List.of("j-nowhere")).allTopicNames().get());
        outcome("fewer partitions", () -> admin.createPartitions(Map.of("j-topics", NewPartitions.increaseTo(2))).all().get());
        outcome("partitions of nothing", () -> admin.createPartitions(Map.of("j-nowhere", NewPartitions.increaseTo(2))).all().get());
        outcome("reassignments", () -> admin.listPartitionReassignments().reassignments().get());
        outcome("deleted by id", () -> admin.deleteTopics(TopicCollection.ofTopicIds(List.of(described.topicId()))).all().get());
        settled(() -> admin.listTopics().names().get(), seen -> !seen.contains("j-topics"));
        outcome("deleted again", () -> admin.deleteTopics(List.of("j-topics")).all().get());
        outcome("deleted by unknown id", () -> admin.deleteTopics(TopicCollection.ofTopicIds(List.of(described.topicId()))).all().get());
    }

    private static void configs() throws Exception {
        topic("j-configs", 1);
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, "j-configs");
        DescribeConfigsOptions everything = new DescribeConfigsOptions().includeSynonyms(true).includeDocumentation(false);
        Config config = admin.describeConfigs(List.of(resource), everything).all().get().get(resource);
        for (ConfigEntry entry : config.entries().stream().sorted((a, b) -> a.name().compareTo(b.name())).toList())
            say(entry.name(), entry.value() + " " + entry.type() + " " + entry.isReadOnly() + entry.isSensitive() + " " + (entry.source() == ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG));
        admin.incrementalAlterConfigs(Map.of(resource, List.of(
                new AlterConfigOp(new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.APPEND),
                new AlterConfigOp(new ConfigEntry("max.message.bytes", "5000"), AlterConfigOp.OpType.SET),
                new AlterConfigOp(new ConfigEntry("delete.retention.ms", "5"), AlterConfigOp.OpType.SET)))).all().get();
        admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry("delete.retention.ms", ""), AlterConfigOp.OpType.DELETE)))).all().get();
        Callable<Config> ask = () -> admin.describeConfigs(List.of(resource)).all().get().get(resource);
        Config altered = settled(ask, seen -> seen.get("max.message.bytes").value().equals("5000") && seen.get("delete.retention.ms").isDefault());
        say("altered", altered.get("cleanup.policy").value() + " " + altered.get("max.message.bytes").value() + " " + altered.get("delete.retention.ms").value());
        admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry("cleanup.policy", "delete"), AlterConfigOp.OpType.SUBTRACT)))).all().get();
        say("subtracted", settled(ask, seen -> seen.get("cleanup.policy").value().equals("compact")).get("cleanup.policy").value());
        for (String[] bad : new String[][] {{"no.such", "1"}, {"retention.ms", "-2"}, {"cleanup.policy", "burn"}, {"compression.type", "rar"}})
            outcome("bad " + bad[0], () -> admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry(bad[0], bad[1]), AlterConfigOp.OpType.SET)))).all().get());
        outcome("only checked", () -> admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry("max.message.bytes", "6000"), AlterConfigOp.OpType.SET))), new AlterConfigsOptions().validateOnly(true)).all().get());
        say("unchanged", ask.call().get("max.message.bytes").value());
        ConfigResource nothing = new ConfigResource(ConfigResource.Type.TOPIC, "j-nowhere");
        outcome("of nothing", () -> admin.describeConfigs(List.of(nothing)).all().get());
        outcome("set on nothing", () -> admin.incrementalAlterConfigs(Map.of(nothing, List.of(new AlterConfigOp(new ConfigEntry("retention.ms", "5"), AlterConfigOp.OpType.SET)))).all().get());
    }

    // Records and offsets.

    private static void records() throws Exception {
        topic("j-records", 1);
        TopicPartition place = new TopicPartition("j-records", 0);
        try (KafkaProducer<String, String> producer = producer()) {
            for (long time : new long[] {100, 300, 200, 400, 50}) producer.send(new ProducerRecord<>("j-records", 0, time, "k", "v" + time)).get();
        }
        Map<String, OffsetSpec> specs = new java.util.LinkedHashMap<>();
        specs.put("earliest", OffsetSpec.earliest());
        specs.put("latest", OffsetSpec.latest());
        specs.put("greatest time", OffsetSpec.maxTimestamp());
        specs.put("earliest local", OffsetSpec.earliestLocal());
        specs.put("latest tiered", OffsetSpec.latestTiered());
        specs.put("at 250", OffsetSpec.forTimestamp(250));
        specs.put("at 900", OffsetSpec.forTimestamp(900));
        for (Map.Entry<String, OffsetSpec> spec : specs.entrySet())
            outcome(spec.getKey(), () -> {
                ListOffsetsResult.ListOffsetsResultInfo found = admin.listOffsets(Map.of(place, spec.getValue())).all().get().get(place);
                return found.offset() + " " + found.timestamp() + " " + found.leaderEpoch();
            });
        outcome("deleted", () -> admin.deleteRecords(Map.of(place, RecordsToDelete.beforeOffset(2))).all().get());
        outcome("deleted too far", () -> admin.deleteRecords(Map.of(place, RecordsToDelete.beforeOffset(99))).all().get());
        outcome("deleted of nothing", () -> admin.deleteRecords(Map.of(new TopicPartition("j-records", 7), RecordsToDelete.beforeOffset(1)), new DeleteRecordsOptions().timeoutMs(1500)).all().get());
        try (KafkaConsumer<String, String> consumer = consumer("auto.offset.reset", "none")) {
            consumer.assign(List.of(place));
            say("bounds", consumer.beginningOffsets(List.of(place)) + " " + consumer.endOffsets(List.of(place)));
            say("times", consumer.offsetsForTimes(Map.of(place, 201L)));
            consumer.seek(place, 3);
            say("from 3", read(consumer, 2));
            consumer.seek(place, 0);
            outcome("out of range", () -> {
                consumer.poll(Duration.ofSeconds(5));
                return consumer.poll(Duration.ofSeconds(5)).count();
            });
            consumer.seek(place, 5);
            outcome("lag", () -> {
                consumer.poll(Duration.ofMillis(500));
                return consumer.currentLag(place);
            });
            outcome("partitions", () -> consumer.partitionsFor("j-records").size());
        }
    }

    // Groups.

    private static final Object[] QUICK = {"session.timeout.ms", 6000, "heartbeat.interval.ms", 200, "metadata.max.age.ms", 500};

    private static KafkaConsumer<String, String> member(String group, Object... more) {
        List<Object> all = new ArrayList<>(Arrays.asList(QUICK));
        all.addAll(List.of("group.id", group));
        all.addAll(Arrays.asList(more));
        return consumer(all.toArray());
    }

    private static void share(List<KafkaConsumer<String, String>> members, Integer... counts) {
        long until = System.currentTimeMillis() + WAIT.toMillis();
        while (System.currentTimeMillis() < until) {
            members.forEach(member -> member.poll(Duration.ofMillis(50)));
            List<Integer> held = members.stream().map(member -> member.assignment().size()).sorted().toList();
            Set<TopicPartition> all = new HashSet<>();
            members.forEach(member -> all.addAll(member.assignment()));
            if (held.equals(List.of(counts)) && all.size() == held.stream().mapToInt(count -> count).sum()) {
                say("shared", held);
                return;
            }
        }
        say("shared", "never as " + List.of(counts));
    }

    private static void sharing(String group, String assignor) throws Exception {
        String topic = "j-" + group;
        topic(topic, 4);
        try (KafkaProducer<String, String> producer = producer()) {
            for (int number = 0; number < 8; number++) producer.send(new ProducerRecord<>(topic, number % 4, null, "v" + number)).get();
        }
        KafkaConsumer<String, String> first = member(topic, "partition.assignment.strategy", assignor, "enable.auto.commit", false);
        KafkaConsumer<String, String> second = member(topic, "partition.assignment.strategy", assignor, "enable.auto.commit", false);
        first.subscribe(List.of(topic));
        say("read", new TreeSet<>(read(first, 8)));
        first.commitSync();
        second.subscribe(Pattern.compile("j-" + group + "$"));
        share(List.of(first, second), 2, 2);
        ConsumerGroupDescription described = admin.describeConsumerGroups(List.of(topic)).all().get().get(topic);
        say("described", described.groupState() + " " + described.partitionAssignor() + " " + described.members().size() + " " + described.isSimpleConsumerGroup() + " " + described.type());
        second.close();
        share(List.of(first), 4);
        say("committed", new TreeMap<>(first.committed(first.assignment()).entrySet().stream().collect(Collectors.toMap(e -> e.getKey().toString(), e -> e.getValue().offset()))));
        outcome("deleted while in use", () -> admin.deleteConsumerGroups(List.of(topic)).all().get());
        outcome("altered while in use", () -> admin.alterConsumerGroupOffsets(topic, Map.of(new TopicPartition(topic, 0), new OffsetAndMetadata(0))).all().get());
        outcome("offsets deleted while in use", () -> admin.deleteConsumerGroupOffsets(topic, Set.of(new TopicPartition(topic, 0))).all().get());
        first.close();
        outcome("state", () -> admin.describeConsumerGroups(List.of(topic)).all().get().get(topic).groupState());
    }

    private static void staticMember() throws Exception {
        topic("j-static", 2);
        KafkaConsumer<String, String> one = member("j-static", "group.instance.id", "one");
        KafkaConsumer<String, String> two = member("j-static", "group.instance.id", "two");
        one.subscribe(List.of("j-static"));
        two.subscribe(List.of("j-static"));
        share(List.of(one, two), 1, 1);
        int generation = one.groupMetadata().generationId();
        Set<TopicPartition> held = new HashSet<>(two.assignment());
        two.close();
        two = member("j-static", "group.instance.id", "two");
        two.subscribe(List.of("j-static"));
        share(List.of(one, two), 1, 1);
        say("kept", held.equals(two.assignment()) + " " + (one.groupMetadata().generationId() == generation));
        KafkaConsumer<String, String> heir = member("j-static", "group.instance.id", "two");
        heir.subscribe(List.of("j-static"));
        share(List.of(one, heir), 1, 1);
        KafkaConsumer<String, String> fenced = two;
        outcome("fenced", () -> {
            for (int turn = 0; turn < 50; turn++) fenced.poll(Duration.ofMillis(100));
            return "never";
        });
        say("instances", admin.describeConsumerGroups(List.of("j-static")).all().get().get("j-static").members().stream().map(member -> member.groupInstanceId().orElse("")).sorted().toList());
        outcome("removed", () -> admin.removeMembersFromConsumerGroup("j-static", new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove("two")))).all().get());
        outcome("removed again", () -> admin.removeMembersFromConsumerGroup("j-static", new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove("two")))).all().get());
        one.close();
        heir.close();
        fenced.close();
        outcome("all removed", () -> admin.removeMembersFromConsumerGroup("j-static", new RemoveMembersFromConsumerGroupOptions()).all().get());
    }

    private static void groups() throws Exception {
        topic("j-groups", 2);
        TopicPartition place = new TopicPartition("j-groups", 0);
        outcome("unknown", () -> admin.describeConsumerGroups(List.of("j-nobody")).all().get());
        outcome("unknown classic", () -> admin.describeClassicGroups(List.of("j-nobody")).all().get());
        outcome("offsets of unknown", () -> admin.listConsumerGroupOffsets("j-nobody").partitionsToOffsetAndMetadata().get());
        outcome("delete unknown", () -> admin.deleteConsumerGroups(List.of("j-nobody")).all().get());
        outcome("delete offsets of unknown", () -> admin.deleteConsumerGroupOffsets("j-nobody", Set.of(place)).all().get());
        outcome("altered", () -> admin.alterConsumerGroupOffsets("j-groups", Map.of(place, new OffsetAndMetadata(7, Optional.of(0), "note"))).all().get());
        outcome("altered nowhere", () -> admin.alterConsumerGroupOffsets("j-groups", Map.of(new TopicPartition("j-nowhere", 0), new OffsetAndMetadata(7))).all().get());
        outcome("listed", () -> admin.listConsumerGroupOffsets("j-groups").partitionsToOffsetAndMetadata().get());
        outcome("listed for both", () -> new TreeMap<>(admin.listConsumerGroupOffsets(Map.of("j-groups", new ListConsumerGroupOffsetsSpec().topicPartitions(List.of(place, new TopicPartition("j-groups", 1))))).partitionsToOffsetAndMetadata("j-groups").get().entrySet().stream().collect(Collectors.toMap(e -> e.getKey().toString(), e -> String.valueOf(e.getValue())))));
        outcome("groups", () -> admin.listGroups().all().get().stream().filter(group -> group.groupId().equals("j-groups")).map(group -> group.protocol() + " " + group.type() + " " + group.groupState()).toList());
        outcome("consumer groups", () -> admin.listConsumerGroups().all().get().stream().filter(group -> group.groupId().equals("j-groups")).map(group -> group.isSimpleConsumerGroup() + " " + group.groupState()).toList());
        outcome("stable groups", () -> admin.listGroups(new ListGroupsOptions().inGroupStates(Set.of(GroupState.STABLE))).all().get().stream().map(GroupListing::groupId).filter(name -> name.equals("j-groups")).toList());
        outcome("described", () -> {
            ConsumerGroupDescription seen = admin.describeConsumerGroups(List.of("j-groups")).all().get().get("j-groups");
            return seen.groupState() + " " + seen.isSimpleConsumerGroup() + " " + seen.members().size() + " " + seen.coordinator().id();
        });
        outcome("offsets deleted", () -> admin.deleteConsumerGroupOffsets("j-groups", Set.of(place)).all().get());
        outcome("left", () -> admin.listConsumerGroupOffsets("j-groups").partitionsToOffsetAndMetadata().get());
        outcome("deleted", () -> admin.deleteConsumerGroups(List.of("j-static", "j-default")).all().get());
        outcome("gone", () -> admin.describeConsumerGroups(List.of("j-default")).all().get());
        outcome("auto commit", () -> {
            try (KafkaConsumer<String, String> consumer = member("j-auto"); KafkaProducer<String, String> producer = producer()) {
                producer.send(new ProducerRecord<>("j-groups", 0, null, "auto")).get();
                consumer.subscribe(List.of("j-groups"));
                read(consumer, 1);
            }
            return admin.listConsumerGroupOffsets("j-auto").partitionsToOffsetAndMetadata().get().get(place).offset();
        });
    }

    // Transactions.

    private static KafkaProducer<String, String> transactional(String id, Object... more) {
        List<Object> all = new ArrayList<>(List.of("transactional.id", id));
        all.addAll(Arrays.asList(more));
        KafkaProducer<String, String> producer = producer(all.toArray());
        producer.initTransactions();
        return producer;
    }

    private static void transactions() throws Exception {
        topic("j-in", 1);
        topic("j-out", 1);
        try (KafkaProducer<String, String> plain = producer()) {
            for (int number = 0; number < 6; number++) plain.send(new ProducerRecord<>("j-in", "in" + number)).get();
        }
        KafkaConsumer<String, String> source = member("j-work", "enable.auto.commit", false, "isolation.level", "read_committed");
        source.subscribe(List.of("j-in"));
        TopicPartition in = new TopicPartition("j-in", 0);
        KafkaProducer<String, String> producer = transactional("j-x");
        List<String> taken = read(source, 6);
        for (int number = 0; number < 3; number++) {
            producer.beginTransaction();
            producer.send(new ProducerRecord<>("j-out", "out " + taken.get(number))).get();
            producer.sendOffsetsToTransaction(Map.of(in, new OffsetAndMetadata(number + 1)), source.groupMetadata());
            if (number == 1) producer.abortTransaction();
            else producer.commitTransaction();
            say("committed", source.committed(Set.of(in)).get(in).offset());
        }
        producer.beginTransaction();
        producer.commitTransaction();
        producer.beginTransaction();
        producer.abortTransaction();
        producer.beginTransaction();
        producer.sendOffsetsToTransaction(Map.of(in, new OffsetAndMetadata(5)), source.groupMetadata());
        producer.commitTransaction();
        say("offsets alone", source.committed(Set.of(in)).get(in).offset());
        producer.beginTransaction();
        producer.send(new ProducerRecord<>("j-out", "open")).get();
        say("read committed", readAll("j-out", "read_committed"));
        say("read uncommitted", readAll("j-out", "read_uncommitted"));
        producer.commitTransaction();
        settled(() -> readAll("j-out", "read_committed"), seen -> seen.contains("open"));
        say("after", readAll("j-out", "read_committed"));
        ConsumerGroupMetadata old = new ConsumerGroupMetadata("j-work", 99, "stranger", Optional.empty());
        producer.beginTransaction();
        outcome("offsets of a stranger", () -> {
            producer.sendOffsetsToTransaction(Map.of(in, new OffsetAndMetadata(9)), old);
            producer.commitTransaction();
            return "taken";
        });
        outcome("aborted then", () -> {
            producer.abortTransaction();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>("j-out", "again")).get();
            producer.commitTransaction();
            return readAll("j-out", "read_committed").contains("again");
        });
        producer.close();
        source.close();
        int rounds = 40;
        try (KafkaProducer<String, String> many = transactional("j-many")) {
            for (int number = 0; number < rounds; number++) {
                many.beginTransaction();
                many.send(new ProducerRecord<>("j-out", "many" + number));
                if (number % 4 == 3) many.abortTransaction();
                else many.commitTransaction();
            }
        }
        List<String> seen = settled(() -> readAll("j-out", "read_committed"), all -> all.contains("many38"));
        say("many", seen.stream().filter(value -> value.startsWith("many")).collect(Collectors.joining(" ")));
    }

    private static void zombies() throws Exception {
        topic("j-zombies", 1);
        KafkaProducer<String, String> zombie = transactional("j-z");
        zombie.beginTransaction();
        zombie.send(new ProducerRecord<>("j-zombies", "zombie")).get();
        KafkaProducer<String, String> heir = transactional("j-z");
        heir.beginTransaction();
        heir.send(new ProducerRecord<>("j-zombies", "heir")).get();
        outcome("zombie sends", () -> zombie.send(new ProducerRecord<>("j-zombies", "late")).get().hasOffset());
        outcome("zombie commits", () -> {
            zombie.commitTransaction();
            return "committed";
        });
        outcome("zombie aborts", () -> {
            zombie.abortTransaction();
            return "aborted";
        });
        heir.commitTransaction();
        zombie.close(Duration.ofSeconds(1));
        KafkaProducer<String, String> slow = transactional("j-slow", "transaction.timeout.ms", 1000);
        slow.beginTransaction();
        slow.send(new ProducerRecord<>("j-zombies", "slow")).get();
        settled(() -> admin.describeTransactions(List.of("j-slow")).all().get().get("j-slow").state(), state -> state == TransactionState.COMPLETE_ABORT);
        outcome("too slow", () -> {
            slow.commitTransaction();
            return "committed";
        });
        slow.close(Duration.ofSeconds(1));
        outcome("fenced by admin", () -> admin.fenceProducers(List.of("j-z")).all().get());
        heir.beginTransaction();
        outcome("heir sends", () -> heir.send(new ProducerRecord<>("j-zombies", "late")).get().hasOffset());
        outcome("heir commits", () -> {
            heir.commitTransaction();
            return "committed";
        });
        heir.close(Duration.ofSeconds(1));
        outcome("timeout too long", () -> transactional("j-long", "transaction.timeout.ms", 900_001));
        say("read", settled(() -> readAll("j-zombies", "read_committed"), seen -> seen.size() == 1));
    }

    private static void transactionAdmin() throws Exception {
        topic("j-hanging", 1);
        TopicPartition place = new TopicPartition("j-hanging", 0);
        KafkaProducer<String, String> producer = transactional("j-h");
        producer.beginTransaction();
        producer.send(new ProducerRecord<>("j-hanging", "v")).get();
        TransactionDescription described = admin.describeTransactions(List.of("j-h")).all().get().get("j-h");
        say("described", described.state() + " " + described.transactionTimeoutMs() + " " + described.topicPartitions() + " " + described.transactionStartTimeMs().isPresent() + " " + described.coordinatorId());
        outcome("unknown", () -> admin.describeTransactions(List.of("j-none")).all().get());
        outcome("listed", () -> admin.listTransactions().all().get().stream().filter(seen -> seen.transactionalId().equals("j-h")).map(TransactionListing::state).toList());
        outcome("ongoing", () -> admin.listTransactions(new ListTransactionsOptions().filterStates(Set.of(TransactionState.ONGOING))).all().get().stream().map(TransactionListing::transactionalId).filter(id -> id.startsWith("j-")).toList());
        outcome("long", () -> admin.listTransactions(new ListTransactionsOptions().filterOnDuration(600_000)).all().get().stream().map(TransactionListing::transactionalId).filter(id -> id.startsWith("j-")).toList());
        ProducerState state = admin.describeProducers(List.of(place)).all().get().get(place).activeProducers().get(0);
        say("producer", state.lastSequence() + " " + state.currentTransactionStartOffset() + " " + (state.producerId() == described.producerId()));
        outcome("producers of nothing", () -> admin.describeProducers(List.of(new TopicPartition("j-hanging", 7)), new DescribeProducersOptions().timeoutMs(1500)).all().get());
        producer.commitTransaction();
        say("ended", settled(() -> admin.describeTransactions(List.of("j-h")).all().get().get("j-h"), seen -> seen.state() == TransactionState.COMPLETE_COMMIT).topicPartitions());
        ProducerState after = settled(() -> admin.describeProducers(List.of(place)).all().get().get(place).activeProducers().get(0), seen -> seen.currentTransactionStartOffset().isEmpty());
        say("producer after", after.currentTransactionStartOffset() + " " + after.lastSequence());
        producer.close();
    }

    private static void cluster() throws Exception {
        DescribeClusterResult described = admin.describeCluster();
        say("nodes", described.nodes().get().size() + " " + described.controller().get().id() + " " + !described.clusterId().get().isEmpty());
        outcome("features", () -> admin.describeFeatures().featureMetadata().get().finalizedFeatures().get("transaction.version"));
        outcome("log dirs", () -> {
            Map<String, LogDirDescription> dirs = admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1);
            LogDirDescription only = dirs.values().iterator().next();
            return dirs.size() + " " + only.replicaInfos().containsKey(new TopicPartition("j-hanging", 0)) + " " + (only.replicaInfos().get(new TopicPartition("j-codecs", 0)).size() > 0) + " " + only.totalBytes().isPresent();
        });
        outcome("broker config", () -> {
            ConfigResource resource = new ConfigResource(ConfigResource.Type.BROKER, "1");
            return admin.describeConfigs(List.of(resource)).all().get().containsKey(resource);
        });
        List<String> ours = admin.listTopics().names().get().stream().filter(name -> name.startsWith("j-")).sorted().toList();
        say("topics", ours);
        admin.deleteTopics(ours).all().get();
        say("left", settled(() -> admin.listTopics().names().get().stream().filter(name -> name.startsWith("j-")).count(), left -> left == 0));
    }
}
