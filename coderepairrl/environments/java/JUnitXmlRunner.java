import java.io.File;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import javax.xml.stream.XMLOutputFactory;
import javax.xml.stream.XMLStreamException;
import javax.xml.stream.XMLStreamWriter;
import org.junit.runner.Description;
import org.junit.runner.JUnitCore;
import org.junit.runner.RunWith;
import org.junit.runner.notification.Failure;
import org.junit.runner.notification.RunListener;

/**
 * Compiles a project's sources and its tests, runs the tests with JUnit 4 (and 3), writes JUnit XML.
 *
 *     java -cp "FOLDER/*" JUnitXmlRunner --report DIR --sources DIR ... [--test-sources DIR] [--resources DIR]
 *         [--classpath JAR] [--javac OPTION] TEST.java ...
 *
 * The exit code is 0 if all pass, 1 if a test fails, 3 if the sources do not compile: then there is no report. A file of
 * tests that does not compile has none. What tests need of --test-sources is compiled with them.
 *
 * What is under test cannot stand in for what judges it: sources are compiled without JUnit, tests against JUnit first;
 * no annotation processor, plugin or implicit source is heard; JUnit and this class come from the parent class loader,
 * which is asked first, and a class of the project in a package of theirs is another package to the machine. Shutdown
 * hooks are not run. For Java 8 and newer.
 */
public final class JUnitXmlRunner {
    private static final Pattern PACKAGE = Pattern.compile("(?m)^\\s*package\\s+([\\w.]+)\\s*;");

    public static void main(String[] arguments) throws Exception {
        Map<String, List<String>> options = new LinkedHashMap<>();
        List<File> tests = new ArrayList<>();
        for (int i = 0; i < arguments.length; i++) {
            if (arguments[i].startsWith("--")) {
                options.computeIfAbsent(arguments[i], name -> new ArrayList<>()).add(arguments[++i]);
            } else {
                tests.add(new File(arguments[i]));
            }
        }
        Path main = Files.createTempDirectory("classes"), test = Files.createTempDirectory("test-classes");
        String jars = String.join(File.pathSeparator, of(options, "--classpath"));
        List<File> sources = new ArrayList<>();
        for (String folder : of(options, "--sources")) {
            sources.addAll(sourcesOf(folder));
        }
        String junit = System.getProperty("java.class.path");
        List<String> javac = of(options, "--javac");
        if (!compile(sources, main, jars, new ArrayList<>(), javac)) {
            end(3);
        }
        String known = String.join(File.pathSeparator, junit, test.toString(), main.toString(), jars);
        tests = compiled(tests, test, known, of(options, "--test-sources"), javac);
        List<URL> places = new ArrayList<>(Arrays.asList(test.toUri().toURL(), main.toUri().toURL()));
        for (String folder : of(options, "--resources")) {
            places.add(new File(folder).toURI().toURL());
        }
        for (String jar : of(options, "--classpath")) {
            places.add(new File(jar).toURI().toURL());
        }
        Report report = new Report();
        ClassLoader loader = new URLClassLoader(places.toArray(new URL[0]), JUnitXmlRunner.class.getClassLoader());
        Thread.currentThread().setContextClassLoader(loader);
        JUnitCore core = new JUnitCore();
        core.addListener(report);
        core.run(classesOf(tests, loader));
        report.write(Paths.get(of(options, "--report").get(0), "report.xml"));
        end(report.failed() ? 1 : 0);
    }

    private static List<String> of(Map<String, List<String>> options, String name) {
        return options.getOrDefault(name, new ArrayList<>());
    }

    /** Without shutdown hooks, which are the project's. */
    private static void end(int code) {
        System.out.flush();
        System.err.flush();
        Runtime.getRuntime().halt(code);
    }

    private static List<File> sourcesOf(String folder) throws IOException {
        try (Stream<Path> paths = Files.walk(Paths.get(folder))) {
            return paths.filter(path -> path.toString().endsWith(".java") && Files.isRegularFile(path))
                    .sorted().map(Path::toFile).collect(Collectors.toList());
        }
    }

    /** Those that compile: all at once, else one by one as long as another one does. */
    private static List<File> compiled(List<File> tests, Path into, String classpath, List<String> places,
            List<String> more) throws IOException {
        if (compile(tests, into, classpath, places, more)) {
            return tests;
        }
        List<File> done = new ArrayList<>();
        for (int before = -1; before < done.size();) {
            before = done.size();
            for (File test : tests) {
                if (!done.contains(test) && compile(Arrays.asList(test), into, classpath, places, more)) {
                    done.add(test);
                }
            }
        }
        return done;
    }

    private static boolean compile(List<File> files, Path into, String classpath, List<String> places,
            List<String> more) throws IOException {
        String nothing = Files.createTempDirectory("nothing").toString();
        List<String> options = new ArrayList<>(Arrays.asList("-d", into.toString(), "-classpath", classpath,
                "-sourcepath", places.isEmpty() ? nothing : String.join(File.pathSeparator, places),
                "-implicit:" + (places.isEmpty() ? "none" : "class"), "-Xprefer:source",
                "-processorpath", nothing, "-proc:none", "-nowarn", "-Xlint:none", "-g"));
        options.addAll(more);
        if (!more.contains("-encoding")) {
            options.addAll(Arrays.asList("-encoding", "UTF-8"));
        }
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        try (StandardJavaFileManager manager = compiler.getStandardFileManager(null, null, StandardCharsets.UTF_8)) {
            return files.isEmpty() || compiler.getTask(new PrintWriter(System.err, true), manager, null, options, null,
                    manager.getJavaFileObjectsFromFiles(files)).call();
        }
    }

    /** Those of the files' classes that have tests; a helper has none. */
    private static Class<?>[] classesOf(List<File> tests, ClassLoader loader) throws Exception {
        List<Class<?>> found = new ArrayList<>();
        for (File file : tests) {
            Matcher matcher = PACKAGE.matcher(new String(Files.readAllBytes(file.toPath()), StandardCharsets.UTF_8));
            String name = (matcher.find() ? matcher.group(1) + "." : "") + file.getName().replaceFirst("\\.java$", "");
            Class<?> one = Class.forName(name, false, loader);
            if (hasTests(one)) {
                found.add(one);
            }
        }
        return found.toArray(new Class<?>[0]);
    }

    private static boolean hasTests(Class<?> one) {
        if (Modifier.isAbstract(one.getModifiers())) {
            return false;
        }
        for (Method method : one.getMethods()) {
            if (method.isAnnotationPresent(org.junit.Test.class)) {
                return true;
            }
        }
        return junit.framework.Test.class.isAssignableFrom(one) || one.isAnnotationPresent(RunWith.class);
    }

    /** What the listener hears, in order. */
    private static final class Report extends RunListener {
        private static final class Case {
            String kind = "", detail = "";
            long started = System.nanoTime(), nanoseconds;
        }

        // before the project's code runs, which could name another one
        private final XMLOutputFactory factory = XMLOutputFactory.newInstance();
        private final Map<Description, Case> cases = new LinkedHashMap<>();

        private synchronized Case of(Description test) {
            return cases.computeIfAbsent(test, key -> new Case());
        }

        @Override
        public synchronized void testStarted(Description test) {
            of(test);
        }

        @Override
        public synchronized void testFinished(Description test) {
            of(test).nanoseconds = System.nanoTime() - of(test).started;
        }

        @Override
        public synchronized void testFailure(Failure failure) {
            Case one = of(failure.getDescription());
            one.kind = failure.getException() instanceof AssertionError ? "failure" : "error";
            one.detail = failure.getTrace();
        }

        @Override
        public synchronized void testAssumptionFailure(Failure failure) {
            of(failure.getDescription()).kind = "skipped";
        }

        @Override
        public synchronized void testIgnored(Description test) {
            of(test).kind = "skipped";
        }

        synchronized boolean failed() {
            return cases.values().stream().anyMatch(one -> one.kind.equals("failure") || one.kind.equals("error"));
        }

        synchronized void write(Path path) throws IOException, XMLStreamException {
            StringWriter text = new StringWriter();
            XMLStreamWriter xml = factory.createXMLStreamWriter(text);
            xml.writeStartDocument("UTF-8", "1.0");
            xml.writeStartElement("testsuite");
            for (Map.Entry<Description, Case> entry : cases.entrySet()) {
                Description test = entry.getKey();
                Case one = entry.getValue();
                xml.writeStartElement("testcase");
                xml.writeAttribute("classname", plain(test.getClassName()));
                // what befalls a whole class has no method
                xml.writeAttribute("name", plain(test.getMethodName() == null ? "class" : test.getMethodName()));
                xml.writeAttribute("time", String.format(java.util.Locale.ROOT, "%.3f", one.nanoseconds / 1e9));
                if (!one.kind.isEmpty()) {
                    xml.writeStartElement(one.kind);
                    xml.writeCharacters(plain(one.detail.substring(0, Math.min(one.detail.length(), 4000))));
                    xml.writeEndElement();
                }
                xml.writeEndElement();
            }
            xml.writeEndElement();
            xml.writeEndDocument();
            try (OutputStream out = Files.newOutputStream(path)) {
                out.write(text.toString().getBytes(StandardCharsets.UTF_8));
            }
        }

        /** Without what XML cannot hold. */
        private static String plain(String text) {
            return text.replaceAll("[^\\x09\\x0A\\x0D\\x20-\\uD7FF\\uE000-\\uFFFD]", "?");
        }
    }
}
