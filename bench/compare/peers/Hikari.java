// A pool of HikariCP on MariaDB Connector/J, told on stdin what to do, as sqlalchemy.py is.

import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;

public class Hikari {
    static HikariDataSource pool;

    interface Work {
        void run(long number) throws SQLException;
    }

    public static void main(String[] args) throws Exception {
        Map<String, String> option = new HashMap<>();
        for (int i = 0; i + 1 < args.length; i += 2) {
            option.put(args[i], args[i + 1]);
        }
        // The defaults stay: connectionTimeout 30 s, maxLifetime 30 min, autocommit. The URL's parameter is what a driver
        // needs for MySQL's passwords without TLS.
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl("jdbc:mariadb://" + option.get("--host") + ":" + option.get("--port") + "/" + option.get("--database")
            + "?allowPublicKeyRetrieval=true");
        config.setUsername(option.get("--user"));
        config.setPassword(System.getenv("BENCH_PASSWORD"));
        config.setMaximumPoolSize(Integer.parseInt(option.get("--size")));
        pool = new HikariDataSource(config);
        String driver;
        try (Connection c = pool.getConnection()) {
            driver = c.getMetaData().getDriverVersion();
        }
        say("{\"ready\":true,\"name\":\"HikariCP " + jarVersion() + ", MariaDB Connector/J " + quoted(driver)
            + ", Java " + System.getProperty("java.version") + "\"}");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null;) {
            String order = line;
            if (text(order, "kind").equals("recycle")) {
                pool.getHikariPoolMXBean().softEvictConnections();
                done("recycle", "");
            } else {
                daemon(() -> obey(order)).start();
            }
        }
        Runtime.getRuntime().halt(0); // whatever hangs
    }

    /** The version of HikariCP, which it does not tell: its jar does. */
    static String jarVersion() throws Exception {
        var properties = new java.util.Properties();
        properties.load(HikariDataSource.class.getResourceAsStream("/META-INF/maven/com.zaxxer/HikariCP/pom.properties"));
        return properties.getProperty("version");
    }

    static void obey(String order) {
        String kind = text(order, "kind");
        try {
            switch (kind) {
                case "query": new Load(order, Hikari::query).run(); break;
                case "exec": new Load(order, Hikari::exec).run(); break;
                case "job": new Load(order, Hikari::job).run(); break;
                case "lock": hold(order); break;
                default: done(kind, ",\"unsupported\":true");
            }
        } catch (OutOfMemoryError | InterruptedException e) { // so many threads cannot be started
            done(kind, ",\"unsupported\":true");
        }
    }

    static void query(long number) throws SQLException {
        try (var c = pool.getConnection(); var s = c.prepareStatement("SELECT v FROM bench_point WHERE id = ?")) {
            s.setLong(1, number % 1000 + 1);
            try (var rows = s.executeQuery()) {
                if (rows.next()) {
                    rows.getString(1);
                }
            }
        }
    }

    static void exec(long number) throws SQLException {
        try (var c = pool.getConnection(); var s = c.createStatement()) {
            s.execute("DO 1");
        }
    }

    static void job(long number) throws SQLException {
        try (var c = pool.getConnection()) {
            c.setAutoCommit(false); // the pool sets it back
            try (var s = c.prepareStatement("INSERT INTO bench_job (id) VALUES (?)")) {
                s.setLong(1, number);
                s.executeUpdate();
            }
            c.commit();
        }
    }

    /** One order: callers that work at the same time until its seconds are over. */
    static class Load {
        final String kind;
        final Work work;
        final int callers;
        final long everyNanos, deadlineNanos, lasts;
        final Map<Long, Long> begun = new HashMap<>(); // this and what follows: under the monitor
        long next, failed, count;
        long[] took = new long[1 << 16];
        boolean closed;
        volatile long end; // in System.nanoTime

        Load(String order, Work work) {
            this.work = work;
            kind = text(order, "kind");
            callers = (int) number(order, "callers", 1);
            lasts = (long) (number(order, "seconds", 1) * 1e9);
            everyNanos = (long) (number(order, "every_ms", 0) * 1e6);
            deadlineNanos = (long) (number(order, "deadline_seconds", 30) * 1e9);
            next = (long) number(order, "first_id", 0);
        }

        void caller() {
            long due = System.nanoTime();
            while (System.nanoTime() - end < 0 && one()) {
                if (everyNanos > 0) {
                    due = Math.max(due + everyNanos, System.nanoTime());
                    try {
                        TimeUnit.NANOSECONDS.sleep(Math.min(due, end) - System.nanoTime());
                    } catch (InterruptedException e) {
                        return;
                    }
                }
            }
        }

        boolean one() {
            long number, startMicros;
            synchronized (this) {
                if (System.nanoTime() - end >= 0) {
                    return false;
                }
                number = next++;
                startMicros = micros();
                begun.put(number, startMicros);
            }
            long start = System.nanoTime();
            String error = null;
            try {
                work.run(number);
            } catch (Exception e) {
                error = firstLine(e);
            }
            long nanos = System.nanoTime() - start;
            synchronized (this) {
                if (closed) {
                    return false; // told as hung
                }
                begun.remove(number);
                if (error != null) {
                    failed++;
                } else {
                    if (count == took.length) {
                        took = Arrays.copyOf(took, took.length * 2);
                    }
                    took[(int) count++] = nanos;
                }
            }
            tell(number, startMicros, error == null ? "ok" : "failed", error == null ? "" : error);
            return true;
        }

        void tell(long number, long startMicros, String outcome, String error) {
            if (kind.equals("job")) {
                say("{\"id\":" + number + ",\"start_us\":" + startMicros + ",\"end_us\":" + micros() + ",\"outcome\":\"" + outcome
                    + "\",\"error\":\"" + quoted(error) + "\"}");
            }
        }

        void run() throws InterruptedException {
            end = System.nanoTime() + lasts;
            List<Thread> threads = new ArrayList<>();
            for (int i = 0; i < callers; i++) {
                threads.add(daemon(this::caller));
            }
            threads.forEach(Thread::start);
            for (Thread t : threads) {
                t.join(Math.max(1, (end + deadlineNanos - System.nanoTime()) / 1_000_000));
            }
            Map<Long, Long> hung;
            synchronized (this) {
                closed = true;
                hung = new HashMap<>(begun);
            }
            hung.forEach((number, startMicros) -> tell(number, startMicros, "hung", "no answer at the deadline"));
            Arrays.sort(took, 0, (int) count);
            done(kind, ",\"operations\":" + (count + failed + hung.size()) + ",\"p50_us\":" + at(0.50) + ",\"p99_us\":" + at(0.99)
                + ",\"failed\":" + (failed + hung.size()));
        }

        double at(double share) {
            return count == 0 ? 0 : took[(int) Math.min(count - 1, (long) (count * share))] / 1000.0;
        }
    }

    /** Holds a row, runs a statement under the driver's time-out, rolls back. */
    static void hold(String order) throws InterruptedException {
        CountDownLatch held = new CountDownLatch(1), ended = new CountDownLatch(1);
        boolean[] failed = {false};
        daemon(() -> {
            try (var c = pool.getConnection(); var s = c.createStatement()) {
                c.setAutoCommit(false);
                s.executeUpdate("UPDATE bench_lock SET v = v + 1 WHERE id = 1");
                say("{\"held\":true}");
                held.countDown();
                Thread.sleep((long) number(order, "pause_ms", 0));
                try {
                    s.setQueryTimeout((int) number(order, "timeout_seconds", 0));
                    s.execute(text(order, "statement"));
                } finally {
                    c.rollback();
                }
            } catch (Exception e) {
                failed[0] = true;
            }
            ended.countDown();
            held.countDown();
        }).start();
        held.await();
        boolean back = ended.await((long) (number(order, "seconds", 30) * 1000), TimeUnit.MILLISECONDS);
        done("lock", ",\"failed\":" + (failed[0] || !back ? 1 : 0));
    }

    static Thread daemon(Runnable work) {
        Thread t = new Thread(work);
        t.setDaemon(true);
        return t;
    }

    static void done(String kind, String more) {
        say("{\"done\":true,\"kind\":\"" + quoted(kind) + "\"" + more + "}");
    }

    static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    static long micros() {
        var now = java.time.Instant.now();
        return now.getEpochSecond() * 1_000_000 + now.getNano() / 1000;
    }

    static String firstLine(Exception e) {
        String line = String.valueOf(e.getMessage()).lines().findFirst().orElse(e.toString());
        return line.substring(0, Math.min(200, line.length()));
    }

    static String quoted(String s) {
        return s.replace("\\", "\\\\").replace("\"", "\\\"").replaceAll("\\p{Cntrl}", " ");
    }

    // An order is flat: name and value, no nesting.
    static String text(String order, String name) {
        var m = Pattern.compile("\"" + name + "\"\\s*:\\s*\"((?:[^\"\\\\]|\\\\.)*)\"").matcher(order);
        return m.find() ? m.group(1).replaceAll("\\\\(.)", "$1") : "";
    }

    static double number(String order, String name, double otherwise) {
        var m = Pattern.compile("\"" + name + "\"\\s*:\\s*(-?[0-9.eE+]+)").matcher(order);
        return m.find() ? Double.parseDouble(m.group(1)) : otherwise;
    }
}
