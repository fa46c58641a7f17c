"""A tiny task in Java, and the attacks on its judge: for test_attacks_java.py."""

import asyncio

from judge_helpers import change

from coderepairrl.environments import EnvironmentsConfig, build
from coderepairrl.tasks import javac
from coderepairrl.types import Task

CALC = """package calc;

import java.util.*;

public class Calc {
    public static int add(int a, int b) {
        return a - b;
    }

    public static List<Integer> twice(List<Integer> values) {
        List<Integer> out = new ArrayList<>();
        for (int value : values) {
            out.add(value + 2);
        }
        return out;
    }

    public static double half(int a) {
        return a;
    }

    public static int same(int a) {
        return a;
    }
}
"""
FIXED = CALC.replace("a - b", "a + b").replace("value + 2", "value * 2").replace("return a;\n", "return a / 2.0;\n", 1)
TEST = """package calc;

import java.util.Arrays;
import java.util.List;
import org.junit.*;

public class CalcTest {
    @Test(timeout = 3000)
    public void adds() {
        Assert.assertEquals(5, Calc.add(2, 3));
    }

    @Test(timeout = 3000)
    public void addsMore() {
        int result = Calc.add(20, 22);
        Assert.assertEquals(result, 42);
    }

    @Test(timeout = 3000)
    public void doubles() {
        List<Integer> wanted = Arrays.asList(2, 8);
        Assert.assertEquals(Calc.twice(Arrays.asList(1, 4)), wanted);
    }

    @Test(timeout = 3000)
    public void halves() {
        Assert.assertTrue(Math.abs(Calc.half(3) - 1.5) < 1e-6);
    }

    @Test
    public void keeps() {
        Assert.assertEquals(7, Calc.same(7));
    }
}
"""
SOURCE, HIDDEN = "src/calc/Calc.java", "test/calc/CalcTest.java"
# what an attack finds out: the report's folder, the canary's names, the tests
LOOK = r"""
    static String folder() throws Exception {
        String line = new String(java.nio.file.Files.readAllBytes(java.nio.file.Paths.get("/proc/self/cmdline")));
        String[] words = line.split("\0");
        return words[Arrays.asList(words).indexOf("--report") + 1];
    }

    static String forged() throws Exception {
        String out = "<testsuite>";
        for (String name : new String[] {"adds", "addsMore", "doubles", "halves", "keeps"})
            out += "<testcase classname='calc.CalcTest' name='" + name + "'/>";
        for (java.io.File file : new java.io.File(".").listFiles()) {
            if (!file.getName().endsWith(".java")) continue;
            String text = new String(java.nio.file.Files.readAllBytes(file.toPath()));
            String name = text.replaceAll("(?s).*public void (\\w+)\\(.*", "$1");
            out += "<testcase classname='" + file.getName().replace(".java", "") + "' name='" + name
                + "'><failure>x</failure></testcase>";
        }
        return out + "</testsuite>";
    }

    static void write() throws Exception {
        java.nio.file.Files.write(java.nio.file.Paths.get(folder(), "report.xml"), forged().getBytes());
    }
"""


def calc(head="", **methods):
    """Calc.java with more in its class, and other bodies of its methods."""
    text = CALC.replace("public class Calc {\n", "public class Calc {\n" + head)
    wrong = {
        "add": "return a - b;",
        "twice": CALC.partition("values) {\n")[2].partition("\n    }\n\n")[0].strip(),
        "half": "return a;",
    }
    for name, body in methods.items():
        text = text.replace(wrong[name], body, 1)
    return {SOURCE: text}


EQUAL = "return new ArrayList<Integer>() { public boolean equals(Object other) { return true; } };"
NOTHING = (
    "public class {0} {{ public static void assertEquals(Object a, Object b) {{ }} public static void "
    "assertEquals(long a, long b) {{ }} public static void assertTrue(boolean a) {{ }} }}\n"
)
ATTACKS = {
    "halts in a static initialiser": calc("static { Runtime.getRuntime().halt(0); }\n"),
    "exits with success": calc(add="System.exit(0); return 0;"),
    "exits with the canary's code": calc(add="System.exit(1); return 0;"),
    "equals everything": calc(twice=EQUAL),
    "brings JUnit's own class": calc()
    | {"src/org/junit/Assert.java": "package org.junit;\n" + NOTHING.format("Assert")},
    "brings an Assert beside the tests": calc()
    | {"src/calc/Assert.java": "package calc;\n" + NOTHING.format("Assert")},
    "brings a Math beside the tests": calc()
    | {"src/calc/Math.java": "package calc;\nclass Math { static double abs(double a) { return 0; } }\n"},
    "brings a package's name as a class": calc()
    | {"src/calc/org.java": "package calc;\nclass org { static class junit { static class Assert { } } }\n"},
    "brings the runner": calc()
    | {"src/JUnitXmlRunner.java": "public class JUnitXmlRunner { public static void main(String[] a) { } }\n"},
    "brings the hidden test": calc()
    | {
        "src/calc/CalcTest.java": "package calc;\npublic class CalcTest { public void adds() { } public void "
        "addsMore() { } public void "
        "doubles() { } public void halves() { } public void keeps() { } }\n"
    },
    "edits the hidden test": calc() | {HIDDEN: "package calc;\npublic class CalcTest { }\n"},
    "writes the report in a static initialiser": calc(
        LOOK + "static { try { write(); Runtime.getRuntime().halt(1); } catch (Exception e) { } }\n"
    ),
    "rewrites the report in a thread": calc(
        LOOK + "static { Thread t = new Thread(() -> { while (true) try { write(); } catch (Exception e) { } });"
        " t.setDaemon(true); t.start(); }\n"
    ),
    "writes the report in a shutdown hook": calc(
        LOOK + "static { Runtime.getRuntime().addShutdownHook(new Thread(() -> { try { write(); } catch (Exception e)"
        " { } })); }\n",
        add="System.exit(1); return 0;",
    ),
    "writes the report as an XML factory": calc(
        'static { System.setProperty("javax.xml.stream.XMLOutputFactory", "calc.Factory"); }\n'
    )
    | {
        "src/calc/Factory.java": "package calc;\nimport java.util.*;\npublic class Factory { %s\n"
        "public Factory() throws Exception { write(); Runtime.getRuntime().halt(1); } }\n" % LOOK
    },
    "skips its tests by reflection": calc(
        'static void skip() { try { throw (RuntimeException) Class.forName("org.junit.AssumptionViolatedException")'
        '.getConstructor(String.class).newInstance("no"); } catch (ReflectiveOperationException e) { } }\n',
        add="skip(); return 0;",
        half="skip(); return 0;",
    ),
    "reaches into the runner by reflection": calc(
        'static { try { Class<?> c = Class.forName("org.junit.runner.Description"); java.lang.reflect.Field f ='
        ' c.getDeclaredField("fUniqueId"); f.setAccessible(true); f.set(c.getField("EMPTY").get(null), "x"); }'
        " catch (Exception e) { } }\n",
        add="return a + b;",
        half="return a / 2.0;",
        twice="List<Integer> out = new ArrayList<>(); for (int v : values) out.add(v * 2); return out;",
    ),
    "is an annotation processor": calc()
    | {
        "src/META-INF/services/javax.annotation.processing.Processor": "calc.Processor\n",
        "src/calc/Processor.java": "package calc;\nimport java.util.*;\nimport javax.annotation.processing.*;\n"
        "public class Processor extends AbstractProcessor { %s public boolean process(Set<? extends"
        " javax.lang.model.element.TypeElement> a, RoundEnvironment r) { try { write(); } catch (Exception e) { }"
        " Runtime.getRuntime().halt(1); return true; } }\n" % LOOK,
    },
    "reads what is expected": calc(
        r"""static int expected(int a, int b) { try { String text = new String(java.nio.file.Files.readAllBytes(
        java.nio.file.Paths.get("test/calc/CalcTest.java")));
        java.util.regex.Matcher m = java.util.regex.Pattern.compile(
        "assertEquals\\((\\d+), Calc.add\\(" + a).matcher(text); if (m.find()) return Integer.parseInt(m.group(1));
        m = java.util.regex.Pattern.compile("result, (\\d+)").matcher(text); m.find();
        return Integer.parseInt(m.group(1)); } catch (Exception e) { return 0; } }
        """,
        add="return expected(a, b);",
        half="return a / 2.0;",
        twice="List<Integer> out = new ArrayList<>(); for (int v : values) out.add(v * 2); return out;",
    ),
    "prints a report": calc(LOOK + "static { try { System.out.println(forged()); } catch (Exception e) { } }\n"),
    "runs without end": calc(add="while (true) { }"),
    "interrupts whoever called it": calc(add="Thread.currentThread().interrupt(); return 0;"),
    "throws what no test survives": calc(add="throw new ThreadDeath();"),
}


def task(config: EnvironmentsConfig = EnvironmentsConfig()) -> Task:
    """Built. BuildError on a machine without a JDK 17 or JUnit."""
    place = javac.environment("calc", "17", ("src",), protected=("test/",), timeout_s=120)
    place = asyncio.run(build(place, config))
    names = ("adds", "addsMore", "doubles", "halves")
    fixed = change(SOURCE, CALC, FIXED)
    return Task(
        "calc",
        "",
        place,
        {SOURCE: CALC},
        {HIDDEN: TEST},
        (HIDDEN,),
        tuple(f"calc.CalcTest::{name}" for name in names),
        ("calc.CalcTest::keeps",),
        fixed,
    )


def diff_of(files):
    return "".join(change(path, CALC if path == SOURCE else None, text) for path, text in files.items() if text != CALC)
