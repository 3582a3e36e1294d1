// scan.go tells apart the few statements that livepool must know about, by
// their text. It reads words, not SQL: where it is in doubt it answers on the
// safe side, and each function says which side that is.

package livepool

import (
	"slices"
	"strings"
)

// singleStatements are the verbs of statements of which a refusal proves that
// nothing ran. CALL is not among them: the procedure may have done, and
// committed, half of its work before the server became read-only; nor is LOAD,
// whose local file cannot be read again.
var singleStatements = []string{
	"SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "REPLACE",
	"CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME",
}

// runsAsOne says whether query is one of those; when in doubt it is not.
func runsAsOne(query string) bool {
	query = skipComments(query)
	return slices.ContainsFunc(singleStatements, func(verb string) bool { return beginsWith(query, verb) })
}

// severalStatements says whether the server may take query for more than one:
// unless the client asked for that, it does not, whatever is in it.
func (c *conn) severalStatements(query string) bool {
	return (c.wire == nil || c.wire.several) && severalStatements(query)
}

// severalStatements says whether there may be more than one statement in query:
// a semicolon outside of strings and comments that is not its end. A backslash
// in a string may or may not escape, by the server's mode, and what is in an
// executable comment may or may not be read, by its version; then every
// semicolon counts.
func severalStatements(query string) bool {
	if !strings.Contains(query, ";") {
		return false
	}
	if strings.Contains(query, "\\") || slices.ContainsFunc(executable, func(s string) bool { return strings.Contains(query, s) }) {
		return strings.Contains(strings.TrimRight(query, "; \t\r\n"), ";")
	}
	for query = skipComments(query); query != ""; query = skipComments(query) {
		switch query[0] {
		case '\'', '"', '`':
			_, rest, closed := strings.Cut(query[1:], query[:1]) // a doubled one ends and begins
			if !closed {
				return true
			}
			query = rest
		case ';':
			return skipComments(strings.TrimLeft(query, "; \t\r\n")) != ""
		default:
			query = query[1:]
		}
	}
	return false
}

// beginsWith says whether verb is query's first word.
func beginsWith(query, verb string) bool {
	n := len(verb)
	return len(query) > n && strings.EqualFold(query[:n], verb) && !isWordByte(query[n])
}

func isWordByte(b byte) bool {
	return b == '_' || b == '$' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// executable begins what is a comment to one server and SQL to another.
var executable = []string{"/*!", "/*M!", "/*T!"}

func beginsExecutable(query string) bool {
	return strings.HasPrefix(query, "/*") &&
		slices.ContainsFunc(executable, func(s string) bool { return strings.HasPrefix(query, s) })
}

// beginsDashComment is true of two dashes and white space or a control character.
func beginsDashComment(query string) bool {
	return strings.HasPrefix(query, "--") && (len(query) == 2 || query[2] <= ' ' || query[2] == 0x7f)
}

// skipComments skips white space and the comments that tracing puts before a
// statement. A comment that the server may execute is no comment.
func skipComments(query string) string {
	if query != "" && isWordByte(query[0]) {
		return query // the usual case, at no price
	}
	for {
		query = strings.TrimLeft(query, " \t\r\n\f\v")
		switch {
		case beginsExecutable(query):
			return query
		case strings.HasPrefix(query, "/*"):
			_, rest, closed := strings.Cut(query[2:], "*/")
			if !closed {
				return ""
			}
			query = rest
		case beginsDashComment(query), strings.HasPrefix(query, "#"):
			_, rest, found := strings.Cut(query, "\n")
			if !found {
				return ""
			}
			query = rest
		default:
			return query
		}
	}
}

// asksNotToWait says whether a statement asked for the lock wait timeout that it
// got: MariaDB answers NOWAIT with error 1205.
func asksNotToWait(query string) bool {
	query = skipComments(query)
	return (beginsWith(query, "SELECT") || beginsWith(query, "WITH")) && containsWord(query, "NOWAIT")
}

// rollsBackToSavepoint says whether query is ROLLBACK TO a savepoint.
func rollsBackToSavepoint(query string) bool {
	rest, ok := cutWord(skipComments(query), "ROLLBACK")
	if !ok {
		return false
	}
	if after, ok := cutWord(rest, "WORK"); ok {
		rest = after
	}
	_, ok = cutWord(rest, "TO")
	return ok
}

// cutWord takes verb off the beginning of query, if it is its first word.
func cutWord(query, verb string) (rest string, ok bool) {
	if !beginsWith(query, verb) {
		return query, false
	}
	return skipComments(query[len(verb):]), true
}

// containsWord looks for word anywhere in query, in strings and comments too.
func containsWord(query, word string) bool {
	for i := 0; i+len(word) <= len(query); i++ {
		if strings.EqualFold(query[i:i+len(word)], word) &&
			(i == 0 || !isWordByte(query[i-1])) &&
			(i+len(word) == len(query) || !isWordByte(query[i+len(word)])) {
			return true
		}
	}
	return false
}

// What scan can see in a statement.
type sight int

const (
	// endsTransaction: COMMIT, ROLLBACK, BEGIN and their like.
	endsTransaction sight = 1 << iota
	// commitsImplicitly: DDL, LOCK TABLES and their like (MySQL manual,
	// Statements That Cause an Implicit Commit).
	commitsImplicitly
	// leavesState: something of it stays on the connection after the
	// transaction.
	leavesState
)

// plainVerbs begin statements that end with themselves, unless they touch a
// user variable or a named lock.
var plainVerbs = []string{
	"SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "TABLE", "VALUES", "DO",
	"SHOW", "DESCRIBE", "DESC", "EXPLAIN", "SAVEPOINT", "RELEASE", "KILL",
}

// statefulVerbs begin statements that leave state, or may, and commit nothing.
// CALL and EXECUTE are not among them: what they do is not seen.
var statefulVerbs = []string{
	"SET", "USE", "PREPARE", "DEALLOCATE", "HANDLER", "LOAD",
}

// enders begin statements that end or begin a transaction. ROLLBACK TO a
// savepoint is none of them.
var enders = []string{"COMMIT", "ROLLBACK", "BEGIN", "XA"}

// scan looks at the first words of a statement, and for what it touches. A
// statement that it does not know commits implicitly and leaves state, for all
// it knows; of a stored function it sees nothing.
func scan(query string) sight {
	query = skipComments(query)
	begins := func(verb string) bool { return beginsWord(query, verb) }
	switch {
	case query == "":
		return 0
	case query[0] == '(' || slices.ContainsFunc(plainVerbs, begins):
		if touchesState(query) {
			return leavesState
		}
		return 0
	case rollsBackToSavepoint(query):
		return 0
	case slices.ContainsFunc(enders, begins):
		return endsTransaction
	}
	rest, _ := cutWord(query, firstWord(query))
	switch {
	case begins("START") && beginsWord(rest, "TRANSACTION"), begins("SET") && containsWord(query, "AUTOCOMMIT"):
		return endsTransaction
	case begins("SET") && (beginsWord(rest, "STATEMENT") || containsWord(query, "PASSWORD")), // SET STATEMENT ... FOR any other
		begins("LOAD") && beginsWord(rest, "INDEX"):
		return commitsImplicitly | leavesState
	case slices.ContainsFunc(statefulVerbs, begins),
		begins("CREATE") && beginsWord(skipOrReplace(rest), "TEMPORARY"),
		begins("DROP") && beginsWord(rest, "TEMPORARY"):
		return leavesState
	}
	return commitsImplicitly | leavesState
}

// touchesState looks for an assignment to a user variable and for a named lock,
// in strings and comments too.
func touchesState(query string) bool {
	if strings.Contains(query, ":=") || containsWord(query, "GET_LOCK") {
		return true
	}
	if !strings.Contains(query, "@") {
		return false
	}
	const into = "INTO"
	for i := range len(query) - len(into) {
		if strings.EqualFold(query[i:i+len(into)], into) {
			after := skipComments(query[i+len(into):])
			for strings.HasPrefix(after, "*/") { // the end of an executable one
				after = skipComments(after[2:])
			}
			if strings.HasPrefix(after, "@") || beginsExecutable(after) {
				return true
			}
		}
	}
	return false
}

// skipOrReplace skips the OR REPLACE of a CREATE.
func skipOrReplace(query string) string {
	if after, ok := cutWord(query, "OR"); ok {
		if after, ok = cutWord(after, "REPLACE"); ok {
			return after
		}
	}
	return query
}

func firstWord(query string) string {
	for i := range len(query) {
		if !isWordByte(query[i]) {
			return query[:i]
		}
	}
	return query
}

// beginsWord is beginsWith, or the whole of it.
func beginsWord(query, word string) bool {
	return beginsWith(query, word) || strings.EqualFold(query, word)
}
