import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.lang.reflect.InvocationTargetException;
import java.util.Arrays;
import org.apache.kafka.common.utils.Exit;

/** Runs Kafka's command line tools one after the other, in one process. A line of input is a class and its arguments,
 * with tabs between; what a tool prints, on either stream, goes to the output, then a line with its exit status. */
public class Tools {
    /** Ends a tool, and not this process. */
    static class Ended extends RuntimeException {
        final int status;

        Ended(int status) {
            super("exit " + status, null, false, false);
            this.status = status;
        }
    }

    public static void main(String[] unused) throws Exception {
        Exit.Procedure end = (status, message) -> {
            throw new Ended(status);
        };
        Exit.setExitProcedure(end);
        Exit.setHaltProcedure(end);
        System.setErr(System.out);
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            String[] words = line.split("\t");
            System.setIn(new ByteArrayInputStream("from a console\n".getBytes()));
            int status = 0;
            try {
                Object given = Arrays.copyOfRange(words, 1, words.length);
                Class.forName(words[0]).getMethod("main", String[].class).invoke(null, given);
            } catch (InvocationTargetException thrown) {
                if (!(thrown.getCause() instanceof Ended)) {
                    throw thrown;
                }
                status = ((Ended) thrown.getCause()).status;
            }
            System.out.println();
            System.out.println("status " + status);
            System.out.flush();
        }
        Runtime.getRuntime().halt(0); // the tools leave hooks that wait for an end of their own
    }
}
