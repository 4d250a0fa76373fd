"""Pieces of programs for each rule: what it changes, and what looks like it and must stay.

A piece stands in `def f(xs, n, s)`: a list of numbers, a number, a text. $r is bound by it and returned; $a to $d are
other names, $v a loop's variable, $k and $j numbers from 3 to 9, $t a condition, $w a word. What comes before a line
--- stands before f.
"""

from __future__ import annotations

NEUTRAL = (
    "$r = sum(xs) + n",
    "$r = max(xs, default=n)",
    "$r = s.upper()",
    "$r = sorted(set(xs))",
    "$r = n\nfor $v in xs:\n    $r += $v",
    "$r = n\nif $t:\n    $r -= $k",
    "$a = [n, $k]\n$r = $a[0] - $a[1]",
    '$r = s or "$w"',
    "def $a($b):\n    return $b + $k\n$r = $a(n)",
    "$r = {$v: $v - $k for $v in xs}",
    "$r = 0\nwhile $r < n:\n    $r += $k",
)

# Of each rule: pieces that it changes, and pieces that it must leave alone.
PIECES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "needless_pass": (
        (
            "$r = n\nif $t:\n    pass\n    $r = $k",
            "$r = []\nfor $v in xs:\n    $r.append($v)\n    pass",
            "def $a($b):\n    pass\n    return $b - $k\n$r = $a(n)",
            "$r = $k\nif $t:\n    $r = $j\nelse:\n    pass\n    $r = n",
            'def $a($b):\n    """$w"""\n    pass\n$r = $a(n)',
            "$r = n\nwhile $r < $k:\n    $r += 1\n    pass\npass",
        ),
        (
            "$r = n\nif $t:\n    pass\nelse:\n    $r = $k",
            "$r = n\nfor $v in xs:\n    pass",
            "class $a:\n    pass\n$r = $a.__name__",
            "def $a($b):\n    pass\n$r = $a(n)",
            '$r = "pass"\nif $t:\n    $r = "pass; $w"',
            "try:\n    $r = xs[$k]\nexcept IndexError:\n    $r = n\nfinally:\n    pass",
        ),
    ),
    "augmented": (
        (
            "$r = n\n$r = $r + $k",
            "$r = n\nfor $v in xs:\n    $r = $r - $v",
            "$r = s\n$r = $r * $k",
            "$r = [n, $k]\n$r[0] = $r[0] + $j",
            "$r = n + $k\nif $t:\n    $r = $r // $j",
            "$a = {0: n}\nfor $v in xs:\n    $a[0] = $a[0] * $k\n$r = $a[0]",
            "$r = n\nwhile $r < $k:\n    $r = $r + ($j + n)",
        ),
        (
            "$r = n\n$r = $k - $r",
            "$r = n\n$r = -$r",
            "$a = n\n$r = $a + $k",
            "$r = n\n$r = $r + $k < $j",
            "def $a():\n    return 0\n$r = [n]\n$r[$a()] = $r[$a()] + $k",
            "$r = $k\n$r = n - ($r + $j)",
            "$r = $a = n\n$r = $a - $r",
        ),
    ),
    "negated_comparison": (
        (
            "$r = n\nif not n == $k:\n    $r = $j",
            "$r = not $k in xs",
            "$r = not s is None",
            "$r = [$v for $v in xs if not $v == n]",
            "$r = $k\nif n > $j and not n in xs:\n    $r = n",
            '$r = not s == "$w"',
            "$r = n\nwhile not $r != $k:\n    $r += 1",
        ),
        (
            "$r = not n < $k",
            "$r = not $k <= n <= $j",
            "$r = not (n == $k) == $t",
            "$r = n != $k",
            "$r = not n == $k == $j",
            "$r = not (n == $k or n == $j)",
            "$r = not xs",
        ),
    ),
    "empty_test": (
        (
            "$r = n\nif len(xs) == 0:\n    $r = $k",
            "$r = n\nif len(s) > 0:\n    $r = $k",
            "$a = list(xs)\n$r = 0\nwhile len($a) > 0:\n    $r += $a.pop()",
            "$r = n\nif n > $k and len(xs) != 0:\n    $r = xs[0]",
            "$r = n\nif n > $k:\n    $r = $j\nelif len(s) == 0:\n    $r = $k",
            "$r = 0\nif len(xs) == 0 or len(s) == 0:\n    $r = $k",
        ),
        (
            "$r = len(xs) == 0",
            "$r = n\nif len(xs) == $k:\n    $r = $j",
            "$r = n\nif len(xs) > 1:\n    $r = $j",
            "def len($a):\n    return n\n$r = $k\nif len(xs) == 0:\n    $r = $j",
            "$r = $k if len(s) == 0 else $j",
            "$r = n\nif len(xs) < 1:\n    $r = $k",
            "$r = [$v for $v in (xs, s) if len($v) > 0]",
        ),
    ),
    "literal": (
        (
            "$r = list()\nfor $v in xs:\n    $r.append($v)\n    $r.append(n)",
            "$r = dict()\nfor $v in xs:\n    $r[$v] = $v - $k",
            "$r = tuple()\nif $t:\n    $r = (n, $k)",
            "$r = xs or list()",
            "def $a($b=None):\n    return $b or dict()\n$r = $a()",
            "$r = [list(), tuple(), n]",
        ),
        (
            "$r = list(xs)",
            "$r = dict(a=n)",
            "$r = tuple(xs[:$k])",
            "def list():\n    return n\n$r = list()",
            "$r = set()",
            '$r = "dict()" + s',
            "$r = str() + s",
            "dict = str\n$r = dict()",
        ),
    ),
    "type_check": (
        (
            "$r = n\nif type(s) == str:\n    $r = $k",
            "$r = [$v for $v in [n, s] if type($v) == int]",
            "$r = type(xs) != list",
            "$r = $k\nif n > $k and type(xs) == dict:\n    $r = n",
            "def $a($b):\n    if type($b) != float:\n        return $k\n    return $j\n$r = $a(s)",
            "$r = type(xs[:1]) == list",
        ),
        (
            "$r = type(n) == type(s)",
            "$r = type(s).__name__ == 'str'",
            "$r = type(s) is str",
            "$r = isinstance(s, str)",
            "def type($a):\n    return $a\n$r = type(n) == $k",
            "$r = type(s) in (str, list)",
            "$a = type(s)\n$r = $a == str",
        ),
    ),
    "f_string": (
        (
            '$r = "$w %s" % (s,)',
            '$r = "%s and %s" % (n, s)',
            '$r = "{} $w".format(n)',
            '$r = "{0}-{1}".format(s, n)',
            '$r = "$w {$a}".format($a=n)',
            '$r = "%s%%" % (n + $k,)',
            '$a = len(xs)\n$r = "{}: {}".format($a, n)',
        ),
        (
            '$r = "$w %s" % n',
            '$r = "%05d" % (n,)',
            '$r = "{:>9}".format(s)',
            '$r = "{0} {0}".format(s)',
            '$a = "$w {}"\n$r = $a.format(n)',
            '$r = "%d" % (n,)',
            '$r = "{!r}".format(s)',
            "$r = n % $k",
            '$r = "{} {}".format(*[n, s])',
        ),
    ),
    "nested_if": (
        (
            "$r = n\nif $t:\n    if n < $k:\n        $r = $j",
            "$r = n\nif s or xs:\n    if n > $k:\n        $r = $j",
            "$r = 0\nfor $v in xs:\n    if $v > n:\n        if $v < $k:\n            $r += $v",
            "$r = $k\nif $t:\n    $r = $j\nelif n > $k:\n    if xs:\n        $r = n",
            "$r = n\nif $t:\n    if xs:\n        if s:\n            $r = $k",
            "$r = n\nif xs and $t:\n    if s and n:\n        $r = $k\n        $r -= $j",
        ),
        (
            "$r = n\nif $t:\n    if n < $k:\n        $r = $j\n    else:\n        $r = $k",
            "$r = n\nif $t:\n    if n < $k:\n        $r = $j\nelse:\n    $r = $k",
            "$r = n\nif $t:\n    $r = $k\n    if n < $k:\n        $r = $j",
            "$r = n\nif $t:\n    if n < $k:\n        $r = $j\n    $r += $k",
            "$r = n\nif $t:\n    while $r < $k:\n        $r += 1",
            "$r = n\nwhile $r < $k:\n    if $t:\n        $r += 1\n    $r += $j",
        ),
    ),
    "returned_condition": (
        (
            "def $a($b):\n    if $b > $k:\n        return True\n    else:\n        return False\n$r = $a(n)",
            "def $a($b):\n    if $b:\n        return True\n    return False\n$r = $a(xs)",
            "def $a($b):\n    if $b == $k:\n        return False\n    else:\n        return True\n$r = $a(n)",
            "def $a($b):\n    if isinstance($b, str) and $b != '$w':\n        return True\n"
            "    return False\n$r = $a(s)",
            "def $a($b, $c):\n    $c = $b - $c\n    if $c or $b:\n        return True\n"
            "    return False\n$r = $a(n, $k)",
            "def $a($b):\n    for $v in $b:\n        if $v == n:\n            return True\n"
            "        else:\n            return False\n$r = $a(xs)",
        ),
        (
            "def $a($b):\n    if $b > $k:\n        return True\n    else:\n        return $b\n$r = $a(n)",
            "def $a($b):\n    if $b > $k:\n        return True\n    else:\n        return True\n$r = $a(n)",
            "def $a($b):\n    if $b > $k:\n        return 1\n    return 0\n$r = $a(n)",
            "def $a($b):\n    for $v in $b:\n        if $v > $k:\n            return True\n"
            "    return False\n$r = $a(xs)",
            "def $a($b):\n    if $b > $k:\n        $b -= 1\n        return True\n    return False\n$r = $a(n)",
            "def bool($b):\n    return n\ndef $a($b):\n    if $b:\n        return True\n"
            "    return False\n$r = $a(xs)\n$r = bool($r)",
        ),
    ),
    "unreachable": (
        (
            "def $a($b):\n    return $b - $k\n    $b = $j\n$r = $a(n)",
            "$r = 0\nfor $v in xs:\n    if $v > n:\n        continue\n        $r = $k\n    $r += $v",
            "$r = 0\nfor $v in xs:\n    $r += $v\n    break\n    $r += $k",
            "def $a($b):\n    if $b > $k:\n        return $j\n        print($b)\n    return $b\n$r = $a(n)",
            "def $a($b):\n    raise ValueError($b)\n    return $b\ntry:\n    $r = $a(n)\n"
            "except ValueError:\n    $r = $k",
            "def $a($b):\n    if $t:\n        return $b\n    else:\n        return $k\n        $b += $j\n$r = $a(n)",
        ),
        (
            "def $a($b):\n    if $b > $k:\n        return $j\n    return $b\n$r = $a(n)",
            "def $a($b):\n    return\n    yield $b\n$r = list($a(n))",
            "def $a($b):\n    while True:\n        $b += $k\n        if $b > n:\n"
            "            return $b\n    return $j\n$r = $a(n)",
            "$r = 0\nfor $v in xs:\n    if $v > n:\n        continue\n    $r += $v",
            "def $a($b):\n    if $b > $k:\n        return $j\n    else:\n        return $b\n    $b = $k\n$r = $a(n)",
            "def $a($b):\n    try:\n        return xs[$b]\n    except IndexError:\n        $b = $k\n"
            "    return $b\n$r = $a(n)",
        ),
    ),
    "folded_constants": (
        (
            "$r = n + $k * $j",
            '$r = s + ("$w" + "$w")',
            "$r = n\nif n > $k + $j:\n    $r = $k ** 3",
            "$r = [n, $k - $j * $k]",
            '$r = s + "-" * $k',
            "$r = n + (-$k + $j * 10) // 7",
            "$r = xs[:$k % 3]",
        ),
        (
            "$r = n + $k + $j",
            "def $a($b):\n    return $b or $k // 0\n$r = $a(n + 1)",
            "$r = True + n",
            "$r = n - (True + True)",
            "$r = len(str($k ** 1000)) + n",
            "$r = $k / $j + n",
            '$r = "$w" + s + "$w"',
            "$r = ['$w' * n, n * $k]",
        ),
    ),
    "comprehension": (
        (
            "$r = []\nfor $v in xs:\n    $r.append($v - $k)",
            "$r = []\nfor $v in xs:\n    if $v > n:\n        $r.append($v)",
            "$r = []\nfor $v in s:\n    $r.append($v.upper())",
            "$r = []\nfor $v, $a in enumerate(xs):\n    $r.append($v - $a)",
            "$a = []\nfor $v in xs:\n    if $v != $k:\n        $a.append([$v, n])\n$r = len($a)",
            "$r = xs[:]\nif $t:\n    $r = []\n    for $v in xs:\n        $r.append($v + $j)",
        ),
        (
            "$r = []\n$v = $k\nfor $v in xs:\n    $r.append($v)\n$r.append($v)",
            "$r = []\nfor $v in xs:\n    $r.append($v)\nelse:\n    $r.append(n)",
            "$r = []\nfor $v in xs:\n    $r.append($v)\n    $r.append(n)",
            "$r = [n]\nfor $v in xs:\n    $r.append($v)",
            "$r = []\nfor $v in xs:\n    $r.append(len($r) + $v)",
            "$r = []\nfor $v in xs:\n    if $v > n:\n        $r.append($v)\n    else:\n        $r.append($k)",
            "$r = set()\nfor $v in xs:\n    $r.add($v)",
            "$r = []\n$a = n\nfor $v in xs:\n    $r.append($v - $a)",
        ),
    ),
    "direct_iteration": (
        (
            "$r = 0\nfor $v in range(len(xs)):\n    $r += xs[$v]",
            "$r = []\nfor $v in range(len(s)):\n    if s[$v] != '$w':\n        $r.append(s[$v] + '$w')",
            "$r = 0\nfor $v in range(len(xs)):\n    $r += xs[$v] - $v",
            "$r = {}\nfor $v in range(len(xs)):\n    $r[$v] = xs[$v]",
            "$a = xs + [n]\n$r = n\nfor $v in range(len($a)):\n    if $a[$v] > $k:\n        $r = $a[$v]",
            "$r = n\nfor $v in range(len(xs)):\n    if $v > $k:\n        break\n    $r -= xs[$v]",
        ),
        (
            "$a = list(xs)\nfor $v in range(len($a)):\n    $a[$v] = n\n$r = $a",
            "$r = 0\nfor $v in range(len(xs)):\n    $r += xs[$v] - xs[$v - 1]",
            "$r = 0\nfor $v in range(len(xs)):\n    $r += $v",
            "$r = 0\n$v = $k\nfor $v in range(len(xs)):\n    $r += xs[$v]\n$r += $v",
            "$r = 0\nfor $v in range(1, len(xs)):\n    $r += xs[$v]",
            "$a = list(xs)\n$r = 0\nfor $v in range(len($a)):\n    $r += $a[$v]\n    $a.append($r)",
            "$r = 0\nfor $v in range(n):\n    if $v < len(xs):\n        $r += xs[$v]",
        ),
    ),
    "strength": (
        (
            "$r = n ** 2",
            "$r = [$v ** 2 for $v in xs]",
            "$r = n * 2 + $k",
            "$a = n - $k\n$r = $a ** 2 - $a",
            "$r = 0\nfor $v in xs:\n    $r += $v * 2",
            "$r = s * 2",
            "$r = n\nif $r ** 2 > $k:\n    $r = $j",
        ),
        (
            "$r = len(xs) ** 2",
            "$r = n ** 3",
            "$r = 2 ** n",
            "$r = (n + $k) ** 2",
            "$r = n * $k",
            "$r = [n][0] ** 2",
            "$r = 2 * n",
            "$r = (n + $k) * 2",
            "$r = n ** 2.0",
        ),
    ),
    "hoisted": (
        (
            "$r = 0\nfor $v in xs:\n    $a = n * $k\n    $r += $v - $a",
            "$r = 0\nwhile $r < $k:\n    $a = n * n + 1\n    $r += $a",
            "$b = n + $k\n$r = []\nfor $v in xs:\n    $a = $b - $j\n    $r.append($v - $a)",
            "$r = []\nfor $v in xs:\n    $r.append($v)\n    $a = n + $k\n    $r.append($a)",
            "$r = 0\nfor $v in xs:\n    $a = n - $k\n    $b = $a * $j\n    $r += $v * $b",
            "$r = n\nfor $v in xs:\n    $a = $k\n    if $v > $a:\n        $r += $a",
        ),
        (
            "$r = 0\nfor $v in xs:\n    $a = $v * $k\n    $r += $a",
            "$r = 0\nfor $v in xs:\n    $a = len(xs) * $k\n    $r += $v - $a",
            "$a = n\n$r = 0\nfor $v in xs:\n    $r += $a\n    $a = n * $k",
            "$a = $j\n$r = 0\nfor $v in xs:\n    $a = n * $k\n    $r += $v\n$r += $a",
            "$r = 0\nfor $v in xs:\n    $a = n + $k\n    $a += $v\n    $r += $a",
            "$r = 0\nfor $v in xs:\n    $a = $r + $k\n    $r += $v - $a",
            "$r = 0\nfor $v in xs:\n    if $v > n:\n        $a = n * $k\n        $r += $a",
            "$r = []\nfor $v in xs:\n    $a = [n, $k]\n    $a.append($v)\n    $r.append($a)",
        ),
    ),
    "unused": (
        (
            "import math\n---\n$r = n + $k",
            "import math, os\n---\n$r = math.floor(n + $k)",
            "from collections import Counter as $a\n---\n$r = n",
            "$a = n * $k\n$r = n",
            "$r = 0\nfor $v in xs:\n    $a = $v + $k\n    $r += $v",
            "$a = n + $k\n$b = $a * $j\n$r = len(xs)",
            "if $t:\n    $a = $k\n$r = n",
        ),
        (
            "import math\n---\n$r = math.floor(n)",
            "import math\n__all__ = ['math', 'f']\n---\n$r = n",
            "$a = str\n$b = $a()\n$r = n",
            "import json\n---\n$r = ['json', n]",
            "$a = n * $k\ndef $b():\n    return $a\n$r = $b()",
            "from math import *\nimport os\n---\n$r = floor(n)",
            "try:\n    import json\nexcept ImportError:\n    json = None\n---\n$r = n",
            "$a = n\n$r = 'a' in locals()",
            "def $b():\n    global $a\n    $a = n\n    return $a\n$r = $b()",
        ),
    ),
}
