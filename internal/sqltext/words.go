package sqltext

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

// SingleStatement says whether query is one of those; when in doubt it is not.
func SingleStatement(query string) bool {
	query = skipComments(query)
	return slices.ContainsFunc(singleStatements, func(verb string) bool { return beginsWith(query, verb) })
}

// Several says whether there may be more than one statement in query: a
// semicolon outside of strings and comments that is not its end. A backslash in
// a string may or may not escape, by the server's mode, and what is in an
// executable comment may or may not be read, by its version; then every
// semicolon counts.
func Several(query string) bool {
	if strings.IndexByte(query, ';') < 0 {
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

// beginsWith says whether verb is query's first word, and not all of it.
func beginsWith(query, verb string) bool {
	n := len(verb)
	return len(query) > n && equalFold(query[:n], verb) && !isWordByte(query[n])
}

// skipComments skips white space and the comments that tracing puts before a
// statement. A comment that the server may execute is no comment.
func skipComments(query string) string {
	if query != "" && isWordByte(query[0]) {
		return query // the usual case, which allocates nothing
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

// LoadsData says whether query may be LOAD DATA.
func LoadsData(query string) bool { return beginsWith(skipComments(query), "LOAD") }

// MayLoadData says whether LOAD DATA may be anywhere in query: LoadsData looks at its
// first word alone.
func MayLoadData(query string) bool {
	return (Several(query) || !SingleStatement(query)) && containsWord(query, "LOAD")
}

// AsksNotToWait says whether a statement asked for the lock wait timeout that it
// got: MariaDB answers NOWAIT with error 1205.
func AsksNotToWait(query string) bool {
	query = skipComments(query)
	return (beginsWith(query, "SELECT") || beginsWith(query, "WITH")) && containsWord(query, "NOWAIT")
}

// RollsBackToSavepoint says whether query is ROLLBACK TO a savepoint.
func RollsBackToSavepoint(query string) bool {
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
		if query[i]|0x20 == word[0]|0x20 && equalFold(query[i:i+len(word)], word) &&
			(i == 0 || !isWordByte(query[i-1])) &&
			(i+len(word) == len(query) || !isWordByte(query[i+len(word)])) {
			return true
		}
	}
	return false
}
