package sqltext

import (
	"slices"
	"strings"
	"testing"
)

// lexed is a statement as the server's lexer takes it apart: words in capitals,
// a quoted thing as its opening quote, := as one, all else byte by byte. It
// follows the server's source, sql_lex.cc, for both readings of a backslash and
// of a comment that is executed by some.
func lexed(query string, backslash, executes bool) (tokens []string, whole bool) {
	inside := false // of an executed comment
	for i := 0; i < len(query); {
		rest := query[i:]
		end := func(after int, closing string) bool {
			n := strings.Index(rest[after:], closing)
			i += after + n + len(closing)
			return n >= 0
		}
		switch c := rest[0]; {
		case strings.IndexByte(" \t\r\n\v\f", c) >= 0, c >= 0x80: // which in latin1 may be white space
			i++
		case c == '#', strings.HasPrefix(rest, "--") && (len(rest) == 2 || rest[2] <= ' ' || rest[2] == 127):
			if !end(0, "\n") {
				return tokens, !inside
			}
		case executes && (strings.HasPrefix(rest, "/*!") || strings.HasPrefix(rest, "/*M!")):
			i += strings.IndexByte(rest, '!') + 1
			for i < len(query) && query[i] >= '0' && query[i] <= '9' {
				i++
			}
			inside = true
		case inside && strings.HasPrefix(rest, "*/"):
			i, inside = i+2, false
		case strings.HasPrefix(rest, "/*"):
			if !end(2, "*/") {
				return tokens, false
			}
		case c == '\'' || c == '"' || c == '`':
			for i++; ; i++ {
				if i >= len(query) {
					return tokens, false
				}
				if query[i] == '\\' && backslash && c != '`' {
					i++
				} else if query[i] == c {
					if i++; i == len(query) || query[i] != c {
						break
					}
				}
			}
			tokens = append(tokens, string(c))
		case strings.HasPrefix(rest, ":="):
			tokens, i = append(tokens, ":="), i+2
		case strings.IndexByte(wordBytes, c) >= 0:
			n := len(rest) - len(strings.TrimLeft(rest, wordBytes))
			tokens, i = append(tokens, strings.ToUpper(rest[:n])), i+n
		default:
			tokens, i = append(tokens, rest[:1]), i+1
		}
	}
	return tokens, !inside
}

const wordBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$"

func nth(tokens []string, i int) string {
	if i < len(tokens) {
		return tokens[i]
	}
	return ""
}

// does says what a statement does at the least, by its tokens and the manuals:
// MySQL's, Statements That Cause an Implicit Commit, and MariaDB's, SQL
// statements That Cause an Implicit Commit. What is not listed there is taken to
// do everything.
func does(tokens []string) Effects {
	at := func(i int) string { return nth(tokens, i) }
	const all = Implicit | State
	variables := Effects(0)
	for i, token := range tokens {
		if token == ":=" || isLock(token) && at(i+1) == "(" || token == "INTO" && at(i+1) == "@" {
			variables = State
		}
	}
	switch at(0) {
	case "":
		return 0
	case "COMMIT":
		return Ends
	case "BEGIN":
		if at(1) == "NOT" {
			return Hidden | all
		}
		return Ends | State
	case "XA":
		if at(1) == "RECOVER" {
			return 0
		}
		return Ends | State
	case "ROLLBACK":
		if at(1) == "TO" || at(1) == "WORK" && at(2) == "TO" {
			return 0
		}
		return Ends
	case "START":
		if at(1) == "TRANSACTION" {
			return Ends | State
		}
		return Implicit
	case "SET":
		return sets(tokens[1:])
	case "USE", "PREPARE", "HANDLER":
		return State
	case "LOAD":
		switch {
		case at(1) == "INDEX":
			return Implicit
		case at(1) != "DATA" && at(1) != "XML":
			return all
		case slices.Contains(tokens, "@"):
			return State
		}
		return variables
	case "GET":
		if slices.Contains(tokens, "@") {
			return State
		}
		return variables
	case "CREATE":
		n := 1
		if at(1) == "OR" {
			n = 3
		}
		switch {
		case at(n) == "TEMPORARY" && at(n+1) == "TABLE":
			return State
		case at(n) == "TEMPORARY":
			return all
		}
		return Implicit | variables
	case "DROP":
		if at(1) == "PREPARE" || at(1) == "TEMPORARY" && (at(2) == "TABLE" || at(2) == "TABLES") {
			return 0
		}
		if at(1) == "DATABASE" || at(1) == "SCHEMA" {
			return all
		}
		return Implicit
	case "ANALYZE":
		switch at(1) {
		case "TABLE", "TABLES", "LOCAL", "NO_WRITE_TO_BINLOG":
			return Implicit
		case "FORMAT":
			return does(tokens[min(len(tokens), 4):])
		}
		return does(tokens[1:])
	case "FLUSH":
		if slices.ContainsFunc(tokens, func(s string) bool { return s == "WITH" || s == "FOR" }) {
			return all
		}
		return Implicit
	case "UNLOCK":
		return Implicit
	case "BACKUP":
		if at(1) == "UNLOCK" {
			return Implicit
		}
		return all
	case "ALTER", "RENAME", "TRUNCATE", "GRANT", "REVOKE", "CHECK", "REPAIR", "OPTIMIZE", "CACHE", "INSTALL", "UNINSTALL",
		"CHANGE", "STOP", "RESET", "IMPORT":
		return Implicit | variables
	case "DO":
		if slices.Contains(tokens, "(") {
			return Hidden | variables
		}
		return variables
	case "CALL", "EXECUTE", "IF", "CASE", "LOOP", "WHILE", "REPEAT", "FOR", "DECLARE":
		return Hidden | all
	case "(", "SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "TABLE", "VALUES",
		"SHOW", "DESCRIBE", "DESC", "EXPLAIN", "SAVEPOINT", "RELEASE", "KILL", "HELP", "CHECKSUM", "SIGNAL", "RESIGNAL", "DEALLOCATE":
		return variables
	}
	return all
}

func isLock(token string) bool {
	return slices.Contains([]string{"GET_LOCK", "SERVICE_GET_READ_LOCKS", "SERVICE_GET_WRITE_LOCKS"}, token)
}

// sets is does for what follows SET: its assignments are what is between commas
// outside of brackets.
func sets(tokens []string) (all Effects) {
	if nth(tokens, 0) == "DEFAULT" && nth(tokens, 1) == "ROLE" {
		return Implicit
	}
	depth, from := 0, 0
	for i := 0; i <= len(tokens); i++ {
		switch token := nth(tokens, i); {
		case token == "(":
			depth++
		case token == ")":
			depth--
		case token == "FOR" && depth <= 0 && tokens[0] == "STATEMENT":
			return does(tokens[i+1:])
		case i == len(tokens), token == "," && depth <= 0:
			all |= assigned(tokens[from:i])
			from = i + 1
		case isLock(token):
			all |= State
		}
	}
	return all
}

func assigned(tokens []string) Effects {
	name := strings.Join(tokens[:min(len(tokens), 5)], " ")
	switch first := nth(tokens, 0); {
	case first == "GLOBAL", first == "PERSIST", first == "PERSIST_ONLY", strings.HasPrefix(name, "@ @ GLOBAL"), strings.HasPrefix(name, "@ @ PERSIST"):
		return 0
	case first == "PASSWORD":
		return Implicit
	}
	for _, before := range []string{"", "SESSION ", "LOCAL ", "@ @ ", "@ @ SESSION . ", "@ @ LOCAL . "} {
		if name == before+"AUTOCOMMIT" || strings.HasPrefix(name, before+"AUTOCOMMIT ") {
			return Ends | State
		}
	}
	return State
}

// covers says whether what Scan saw is at least what the statement does.
func covers(saw, does Effects) bool {
	if does&Ends != 0 && saw&Implicit != 0 { // hidden in a comment that some execute
		does &^= Ends
	}
	return saw&does == does
}

// known are statements in pieces between which there may be white space and
// comments, with what they do.
var known = []struct {
	pieces string
	want   Effects
}{
	{"SELECT|1", 0}, {"INSERT|INTO|t|VALUES|(|1|)", 0}, {"UPDATE|t|SET|a|=|1", 0}, {"(|SELECT|1|)", 0},
	{"WITH|x|AS|(|SELECT|1|)|SELECT|*|FROM|x", 0}, {"SELECT|@@version", 0}, {"SAVEPOINT|a", 0},
	{"ROLLBACK|TO|a", 0}, {"ROLLBACK|WORK|TO|SAVEPOINT|a", 0}, {"RELEASE|SAVEPOINT|a", 0},

	{"SHOW|TABLES", 0}, {"CHECKSUM|TABLE|t", 0}, {"XA|RECOVER", 0}, {"SET|GLOBAL|a|=|1", 0}, {"SET|@@global.a|=|1", 0},
	{"ANALYZE|SELECT|1", 0}, {"ANALYZE|FORMAT|=|JSON|SELECT|1", 0}, {"DROP|TEMPORARY|TABLE|a", 0}, {"LOAD|DATA|INFILE|'x'|INTO|TABLE|t", 0},
	{"SET|STATEMENT|max_statement_time|=|1|FOR|SELECT|1", 0},

	{"SET|@x|=|1", State}, {"SET|SESSION|sql_mode|=|''", State}, {"USE|other", State}, {"SET|@autocommit|=|1", State},
	{"SELECT|@x|:=|1", State}, {"SELECT|1|INTO|@x", State}, {"SELECT|1|,|2|INTO|@x|,|@y", State},
	{"SELECT|a|FROM|t|INTO|@x|FOR UPDATE", State}, {"SELECT|GET_LOCK|(|'a'|,|1|)", State}, {"DO|GET_LOCK|(|'a'|,|1|)", State | Hidden},
	{"CREATE|TEMPORARY|TABLE|a|(|b|INT|)", State}, {"CREATE|OR|REPLACE|TEMPORARY|TABLE|a|(|b|INT|)", State},
	{"PREPARE|s|FROM|'SELECT 1'", State}, {"LOAD|DATA|INFILE|'x'|INTO|TABLE|t|(|a|,|@b|)", State}, {"HANDLER|t|OPEN", State},

	{"COMMIT", Ends}, {"COMMIT|WORK", Ends}, {"ROLLBACK", Ends}, {"BEGIN", Ends | State},
	{"START|TRANSACTION", Ends | State}, {"XA|START|'x'", Ends | State}, {"SET|autocommit|=|1", Ends | State},
	{"SET|@x|=|1|,|SESSION|autocommit|=|0", Ends | State}, {"SET|@@session.|autocommit|=|0", Ends | State},

	{"CREATE|TABLE|a|(|b|INT|)", Implicit}, {"CREATE|OR|REPLACE|TABLE|a|(|b|INT|)", Implicit},
	{"LOCK|TABLES|t|WRITE", Implicit | State}, {"UNLOCK|TABLES", Implicit}, {"CREATE|TEMPORARY|SEQUENCE|s", Implicit | State},
	{"TRUNCATE|t", Implicit}, {"ALTER|TABLE|a|ADD|c|INT", Implicit}, {"SET|DEFAULT|ROLE|r|TO|u", Implicit},
	{"CALL|p|(|)", Hidden | Implicit | State}, {"BEGIN|NOT|ATOMIC|SELECT|1|END", Hidden | Implicit | State}, {"SET|PASSWORD|=|'x'", Implicit},
	{"SET|STATEMENT|max_statement_time|=|1|FOR|CREATE|TABLE|a|(|b|INT|)", Implicit},
	{"SET|@x|=|1|,|PASSWORD|=|'x'", Implicit | State}, {"LOAD|INDEX|INTO|CACHE|t", Implicit}, {"FLUSH|TABLES|WITH|READ|LOCK", Implicit | State},
}

// singleStatement is a statement that may be sent again where several are allowed.
func singleStatement(query string) bool { return !Several(query) && SingleStatement(query) }

// FuzzScan reads noise as a statement, and puts it into comments and strings of
// statements that are known.
func FuzzScan(f *testing.F) {
	for i, q := range []string{
		"SELECT 1", "/* x", "-- x", "--\tx\nCOMMIT", "/*! y */", "SELECT a INTO @x", "SELECT 1 INTO /* x */ @x", "ROLLBACK TO s", "@", ":=", "(",
		"CREATE OR REPLACE TABLE a (b INT) COMMENT 'temporary'", "SELECT 'it''s; \\'; COMMIT", "SELECT/*!99999 '*/1; COMMIT -- '",
		"SELECT 1 /*!INTO*/ @x", "SELECT 1; -- done", "SET @a = 1, PASSWORD = ''", "CREATE/**/OR/**/REPLACE/**/TEMPORARY/**/TABLE a (b INT)",
	} {
		f.Add(q, uint16(i), []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	}
	f.Fuzz(func(t *testing.T, noise string, pick uint16, gaps []byte) {
		if len(noise) > 1000 {
			return
		}
		// A comment of any kind, which no server executes, and a string.
		line := strings.ReplaceAll(noise, "\n", " ")
		block := "/* " + strings.ReplaceAll(noise, "*/", "* /") + "*/"
		quoted := "'" + strings.ReplaceAll(noise, "'", "''") + "'"
		spaces := []string{" ", "\t", "\n", "\r\n", "\v", "\f", "/**/", block, "-- " + line + "\n", "--\t" + line + "\n", "--\n", " #" + line + "\n"}

		// What is before a statement changes nothing of it, nor do capitals, but for
		// the M by which MariaDB knows a comment that it executes, and TiDB's T.
		for _, space := range spaces {
			if Scan(space+noise) != Scan(noise) {
				t.Errorf("%q: %b, after %q %b", noise, Scan(noise), space, Scan(space+noise))
			}
			if RollsBackToSavepoint(space+noise) != RollsBackToSavepoint(noise) {
				t.Errorf("%q: after %q rolls back to a savepoint or not", noise, space)
			}
		}
		asciiUpper := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				r -= 'a' - 'A'
			}
			return r
		}, noise)
		same := Scan(asciiUpper) == Scan(noise) && AsksNotToWait(asciiUpper) == AsksNotToWait(noise) && singleStatement(asciiUpper) == singleStatement(noise)
		if !same && !strings.Contains(asciiUpper, "/*M!") && !strings.Contains(asciiUpper, "/*T!") {
			t.Errorf("%q: capitals make a difference", noise)
		}

		// Whatever it is, livepool sees at least what a server may do, which
		// executes such comments or does not, and takes a backslash for an escape or
		// does not.
		for mode := range 4 {
			tokens, whole := lexed(noise, mode&1 != 0, mode&2 != 0)
			first := tokens
			semicolon := slices.Index(tokens, ";")
			if semicolon >= 0 {
				first = tokens[:semicolon]
			}
			if semicolon < 0 && !whole {
				continue // the server refuses it
			}
			if saw, want := Scan(noise), does(first); !covers(saw, want) {
				t.Errorf("%q is seen as %b, and is %b (mode %d: %q)", noise, saw, want, mode, first)
			}
			if semicolon >= 0 && slices.ContainsFunc(tokens[semicolon:], func(s string) bool { return s != ";" }) {
				if !Several(noise) || singleStatement(noise) {
					t.Errorf("%q is taken for one statement (mode %d: %q)", noise, mode, tokens)
				}
			}
			if RollsBackToSavepoint(noise) && nth(first, 0) != "ROLLBACK" {
				t.Errorf("%q is taken for ROLLBACK TO (mode %d: %q)", noise, mode, first)
			}
		}

		// A known one is known whatever stands between its words.
		gap := func(i int) string {
			if len(gaps) == 0 {
				return " "
			}
			return spaces[int(gaps[i%len(gaps)])%len(spaces)]
		}
		stmt := known[int(pick)%len(known)]
		var text strings.Builder
		for i, piece := range strings.Split(stmt.pieces, "|") {
			if i > 0 {
				text.WriteString(gap(i))
			}
			if len(gaps) > 0 && gaps[i%len(gaps)]&0x80 != 0 {
				piece = strings.ToLower(piece)
			}
			text.WriteString(piece)
		}
		// Where no string is in doubt, nothing in one or in a comment counts.
		exact := !strings.ContainsAny(noise, "\\!")
		for _, query := range []string{text.String(), text.String() + gap(0) + "COMMENT" + gap(1) + quoted} {
			got := Scan(query)
			if got&stmt.want != stmt.want || exact && got != stmt.want && (stmt.want&Ends == 0 || got != stmt.want|State) {
				t.Errorf("%q: %b, want %b", query, got, stmt.want)
			}
			// In a string or a comment there is no other statement, and no word of one.
			if got&^State != 0 && stmt.want == 0 {
				t.Errorf("%q: %b", query, got)
			}
			if certain := !strings.Contains(query, "\\") && !strings.ContainsAny(noise, "!"); certain && Several(query) {
				t.Errorf("%q is taken for several statements", query)
			}
			if !Several(query + gap(2) + ";" + gap(3) + "COMMIT") {
				t.Errorf("%q and a COMMIT are taken for one statement", query)
			}
		}
	})
}
