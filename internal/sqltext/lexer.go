package sqltext

import "strings"

// lexer takes a statement apart once, from left to right, as the servers do
// (sql_lex.cc of both): words, quoted things, and all else byte by byte.
type lexer struct {
	text string
	pos  int
	// executes: what is in an executable comment is read as SQL; it is skipped
	// otherwise. Which of the two a server does depends on its version.
	executes bool
	inside   bool // of such a comment
	// executables counts those that were met, and the comments within them.
	executables int
	// verbatim: a backslash in a string is a byte like any other, as in the mode
	// NO_BACKSLASH_ESCAPES.
	verbatim bool
	// escapes: there is one by which the two readings differ.
	escapes bool
	// uncertain: where a quoted name ends depends on the character set.
	uncertain bool
	last      token
	again     bool // last is to be given once more
}

// kind of a token.
type kind byte

const (
	end    kind = iota
	word        // of ASCII letters, digits, _ and $
	quoted      // text is its inside
	assign      // :=
	symbol      // any other byte
)

type token struct {
	kind  kind
	quote byte // of a quoted one
	text  string
}

func (t token) is(name string) bool { return t.kind == word && equalFold(t.text, name) }

func (t token) isOneOf(names ...string) bool {
	for _, name := range names {
		if t.is(name) {
			return true
		}
	}
	return false
}

func (t token) isSymbol(b byte) bool { return t.kind == symbol && t.text[0] == b }

// ends is true of what is behind the last token of a statement.
func (t token) ends() bool { return t.kind == end || t.isSymbol(';') }

// back has next give the last token once more.
func (l *lexer) back() { l.again = true }

func (l *lexer) next() token {
	if !l.again {
		l.last = l.read()
	}
	l.again = false
	return l.last
}

func (l *lexer) read() token {
	l.space()
	if l.pos >= len(l.text) {
		return token{}
	}
	start, c := l.pos, l.text[l.pos]
	switch {
	case isWordByte(c):
		for l.pos < len(l.text) && isWordByte(l.text[l.pos]) {
			l.pos++
		}
		return token{kind: word, text: l.text[start:l.pos]}
	case c == '\'' || c == '"' || c == '`':
		return l.quoted(c)
	case c == ':' && strings.HasPrefix(l.text[l.pos:], ":="):
		l.pos += 2
		return token{kind: assign}
	}
	l.pos++
	return token{kind: symbol, text: l.text[start:l.pos]}
}

// quoted reads a string or a quoted name. Of a doubled quote the parts come as
// two tokens, which is as good here.
func (l *lexer) quoted(quote byte) token {
	if quote == '`' && l.pos > 0 && l.text[l.pos-1] >= 0x80 {
		l.uncertain = true // in GBK and its like it may be half of a character
	}
	l.pos++
	start := l.pos
	for {
		n := strings.IndexByte(l.text[l.pos:], quote)
		if n < 0 {
			l.pos = len(l.text)
			return token{kind: quoted, quote: quote, text: l.text[start:]}
		}
		escape := -1
		if quote != '`' && !l.verbatim {
			escape = strings.IndexByte(l.text[l.pos:l.pos+n], '\\')
		}
		if escape < 0 {
			l.pos += n + 1
			return token{kind: quoted, quote: quote, text: l.text[start : l.pos-1]}
		}
		l.pos += escape + 2
		if c := l.text[l.pos-1]; c == quote || c == '\\' {
			l.escapes = true
		}
	}
}

// space skips white space and comments. Any byte above ASCII is taken for white
// space between tokens: in latin1 there is one that is.
func (l *lexer) space() {
	for l.pos < len(l.text) {
		rest := l.text[l.pos:]
		switch c := rest[0]; {
		case isSpace(c):
			l.pos++
		case c == '#', c == '-' && beginsDashComment(rest):
			l.skipPast(rest, "\n")
		case c == '*' && l.inside && strings.HasPrefix(rest, "*/"):
			l.pos, l.inside = l.pos+2, false
		case c == '/' && beginsExecutable(rest):
			l.executables++
			if l.executes {
				l.enter(rest)
			} else {
				l.skipNested()
			}
		case c == '/' && strings.HasPrefix(rest, "/*"):
			l.pos += 2
			l.skipPast(rest[2:], "*/")
		default:
			return
		}
	}
}

func (l *lexer) skipPast(rest, closing string) {
	if n := strings.Index(rest, closing); n >= 0 {
		l.pos += n + len(closing)
	} else {
		l.pos = len(l.text)
	}
}

// enter goes into an executable comment, past the version that it names.
func (l *lexer) enter(rest string) {
	n := strings.IndexByte(rest, '!') + 1
	if n == 0 || n > 4 { // TiDB's
		n = len("/*T!")
	}
	for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
		n++
	}
	l.pos, l.inside = l.pos+n, true
}

// skipNested skips a comment in which there may be others, of which not all
// servers think the same.
func (l *lexer) skipNested() {
	l.pos += 2
	for depth := 1; depth > 0; {
		n := strings.IndexAny(l.text[l.pos:], "*/")
		if n < 0 {
			l.pos = len(l.text)
			return
		}
		l.pos += n
		switch here := l.text[l.pos:]; {
		case strings.HasPrefix(here, "*/"):
			l.pos, depth = l.pos+2, depth-1
		case strings.HasPrefix(here, "/*"):
			l.pos, depth, l.executables = l.pos+2, depth+1, l.executables+1
		default:
			l.pos++
		}
	}
}

func isSpace(b byte) bool {
	switch b {
	case ' ', '\t', '\n', '\r', '\v', '\f':
		return true
	}
	return b >= 0x80
}

func isWordByte(b byte) bool {
	return b == '_' || b == '$' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// executable begins what is a comment to one server and SQL to another.
var executable = []string{"/*!", "/*M!", "/*T!"}

func beginsExecutable(query string) bool {
	if !strings.HasPrefix(query, "/*") {
		return false
	}
	for _, s := range executable {
		if strings.HasPrefix(query, s) {
			return true
		}
	}
	return false
}

// beginsDashComment is true of two dashes and white space or a control character.
func beginsDashComment(query string) bool {
	return strings.HasPrefix(query, "--") && (len(query) == 2 || query[2] <= ' ' || query[2] == 0x7f)
}

// equalFold compares words, of which b is one of ours: ASCII letters and _.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if a[i]|0x20 != b[i]|0x20 {
			return false
		}
	}
	return true
}
