// idempotent.go says which statements may be sent twice: those that their
// caller vouches for, and those whose refusal proves that nothing ran.

package livepool

import (
	"context"
	"slices"
	"strings"
)

type idempotentKey struct{}

// Idempotent returns a context under which a statement outside a transaction
// may be sent again after its connection was lost, even if it may have run:
// the caller vouches that running it twice does no harm. Without it a
// statement that was written and not answered fails with
// mysql.ErrInvalidConn. It changes nothing inside a transaction.
func Idempotent(ctx context.Context) context.Context {
	return context.WithValue(ctx, idempotentKey{}, true)
}

// isIdempotent is asked only after a loss, so that it costs nothing before.
func isIdempotent(ctx context.Context) bool { return ctx.Value(idempotentKey{}) != nil }

// singleStatements are the verbs of statements of which a refusal proves that
// nothing ran. CALL is not among them: the procedure may have done, and
// committed, half of its work before the server became read-only; nor is LOAD,
// whose local file cannot be read again.
var singleStatements = []string{
	"SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "REPLACE",
	"CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME",
}

// singleStatement says whether query is one of those; when in doubt it is not.
func singleStatement(query string) bool {
	query = skipComments(query)
	return slices.ContainsFunc(singleStatements, func(verb string) bool { return beginsWith(query, verb) })
}

// beginsWith says whether verb is query's first word.
func beginsWith(query, verb string) bool {
	n := len(verb)
	return len(query) > n && strings.EqualFold(query[:n], verb) && !isWordByte(query[n])
}

func isWordByte(b byte) bool {
	return b == '_' || b == '$' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// skipComments skips white space and the comments that tracing puts before a
// statement. A comment that the server executes (/*! and /*M!) is no comment.
func skipComments(query string) string {
	for {
		query = strings.TrimLeft(query, " \t\r\n\f\v")
		switch {
		case strings.HasPrefix(query, "/*!"), strings.HasPrefix(query, "/*M!"):
			return query
		case strings.HasPrefix(query, "/*"):
			_, rest, closed := strings.Cut(query[2:], "*/")
			if !closed {
				return ""
			}
			query = rest
		case strings.HasPrefix(query, "-- "), strings.HasPrefix(query, "#"):
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
