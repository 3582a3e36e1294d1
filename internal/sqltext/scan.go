// Package sqltext says what the text of a statement tells of its effects on the
// transaction and on the connection. It reads words, not SQL: where it is in
// doubt it answers on the safe side. Of what a stored function or a trigger does
// it sees nothing.
package sqltext

import "strings"

// Effects is what a statement does besides its work: a set of the flags below.
type Effects uint8

const (
	// Ends: it ends or begins a transaction: COMMIT, ROLLBACK, BEGIN and their like.
	Ends Effects = 1 << iota
	// Implicit: it commits implicitly, or may: DDL, LOCK TABLES and their like
	// (MySQL manual, Statements That Cause an Implicit Commit).
	Implicit
	// State: something of it stays on the connection, or may.
	State
	// Hidden: a transaction may end in it without an error: CALL, EXECUTE, and DO,
	// of which MariaDB drops the errors.
	Hidden
)

// anything is what a statement does that is not known.
const anything = Implicit | State

// Scan reads one statement. Everyday ones cost a look at their first word, and a
// search for the few bytes without which they leave no state.
func Scan(query string) Effects {
	query = skipComments(query)
	if isEveryday(query) && !maySetState(query) {
		return 0
	}
	// It is read in each way in which a server may: by its mode, and its version.
	seen := Effects(0)
	for _, verbatim := range [...]bool{false, true} {
		l := lexer{text: query, executes: true, verbatim: verbatim}
		seen |= l.statement()
		if l.executables > 0 {
			skips := lexer{text: query, verbatim: verbatim}
			seen |= skips.statement()
			if l.executables > 1 || skips.executables > 1 || seen&^State != 0 {
				seen |= anything
			}
		}
		if l.uncertain {
			seen |= uncertainly(query)
		}
		if !l.escapes {
			break
		}
	}
	return seen
}

// ScanSeveral is Scan where the server takes several statements at a time.
func ScanSeveral(query string) Effects {
	seen := Scan(query)
	if !Several(query) {
		return seen
	}
	l := lexer{text: query, executes: true}
	for {
		each := l.statement()
		if each&^State != 0 || l.escapes || l.uncertain || l.executables > 0 {
			return seen | each&Hidden | anything
		}
		seen |= each
		if l.skipStatement() {
			return seen
		}
	}
}

// everyday are the verbs of most statements, by their first letter.
var everyday = ['z' + 1]string{'s': "SELECT", 'i': "INSERT", 'u': "UPDATE", 'd': "DELETE", 'r': "REPLACE", 'w': "WITH"}

func isEveryday(query string) bool {
	if query == "" || query[0]|0x20 > 'z' {
		return false
	}
	verb := everyday[query[0]|0x20]
	return verb != "" && beginsWith(query, verb)
}

// maySetState says whether there is something in the text without which a
// statement of data sets no user variable and takes no named lock.
func maySetState(query string) bool {
	return strings.Contains(query, ":=") || mayTakeLock(query) || maySelectIntoVariable(query)
}

// lockFunctions take locks that outlive their statement and its transaction:
// GET_LOCK, and those of MySQL's locking service and version tokens.
var lockFunctions = []string{
	"GET_LOCK", "SERVICE_GET_READ_LOCKS", "SERVICE_GET_WRITE_LOCKS", "VERSION_TOKENS_LOCK_SHARED", "VERSION_TOKENS_LOCK_EXCLUSIVE",
}

func isLockFunction(name string) bool {
	for _, f := range lockFunctions {
		if equalFold(name, f) {
			return true
		}
	}
	return false
}

// mayTakeLock looks for the end that their names have in common.
func mayTakeLock(query string) bool {
	for rest := query; ; {
		n := strings.IndexByte(rest, '_')
		if n < 0 || len(rest) < n+len("_LOCK") {
			return false
		}
		rest = rest[n:]
		if rest[1]|0x20 == 'l' && strings.EqualFold(rest[:len("_LOCK")], "_LOCK") {
			return true
		}
		rest = rest[1:]
	}
}

// maySelectIntoVariable looks for INTO before an @, where there may be a comment
// between them.
func maySelectIntoVariable(query string) bool {
	at := strings.IndexByte(query, '@')
	if at < 0 {
		return false
	}
	if strings.Contains(query, "/*") || strings.Contains(query, "--") || strings.IndexByte(query, '#') >= 0 {
		return true
	}
	for {
		before := at
		for before > 0 && isSpace(query[before-1]) {
			before--
		}
		if before >= len("INTO") && equalFold(query[before-len("INTO"):before], "INTO") {
			return true
		}
		n := strings.IndexByte(query[at+1:], '@')
		if n < 0 {
			return false
		}
		at += 1 + n
	}
}

// uncertainly is what a statement may do whose names are in doubt, by the words
// that are anywhere in it.
func uncertainly(query string) (more Effects) {
	if maySetState(query) {
		more |= State
	}
	if first := (&lexer{text: query, executes: true}).next(); first.is("SET") {
		more |= State
		if containsWord(query, "AUTOCOMMIT") {
			more |= Ends
		}
		for _, name := range []string{"PASSWORD", "STATEMENT", "ROLE"} {
			if containsWord(query, name) {
				more |= Implicit
			}
		}
	} else if first.is("DO") {
		more |= Hidden
	}
	return more
}

// statement reads one statement, of which it leaves the rest where it has seen
// enough.
func (l *lexer) statement() Effects {
	first := l.next()
	switch {
	case first.ends():
		l.back()
		return 0
	case first.isSymbol('('):
		return l.touches()
	case first.kind != word:
		return anything
	}
	return l.verb(first)
}

// skipStatement goes past the end of the statement, and says whether nothing
// follows.
func (l *lexer) skipStatement() bool {
	t := l.next()
	for !t.ends() {
		t = l.next()
	}
	for t.isSymbol(';') {
		t = l.next()
	}
	l.back()
	return t.kind == end
}

// touches reads to the end of a statement, which leaves state if it assigns to a
// user variable or takes a named lock.
func (l *lexer) touches() (seen Effects) {
	for t := l.next(); !t.ends(); t = l.next() {
		switch {
		case t.kind == assign:
			seen |= State
		case t.is("INTO"):
			if l.next().isSymbol('@') {
				seen |= State
			} else {
				l.back()
			}
		case t.kind == word && isLockFunction(t.text), t.kind == quoted && t.quote != '\'' && isLockFunction(t.text):
			if l.next().isSymbol('(') {
				seen |= State
			} else {
				l.back()
			}
		}
	}
	l.back()
	return seen
}

// has reads to the end of a statement and says whether one of the tokens is in
// it.
func (l *lexer) has(is func(token) bool) (found bool) {
	for t := l.next(); !t.ends(); t = l.next() {
		found = found || is(t)
	}
	l.back()
	return found
}
