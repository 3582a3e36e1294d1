package sqltext

// verb reads a statement that begins with such a word. What is not here may do
// anything.
func (l *lexer) verb(first token) Effects {
	switch {
	case first.isOneOf("SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "TABLE", "VALUES", "SHOW", "DESCRIBE", "DESC", "EXPLAIN",
		"SAVEPOINT", "RELEASE", "KILL", "HELP", "CHECKSUM", "SIGNAL", "RESIGNAL", "DEALLOCATE"):
		return l.touches()
	case first.is("DO"):
		return l.do()
	case first.is("SET"):
		return l.set()
	case first.is("BEGIN"):
		return l.begin()
	case first.is("START"):
		return l.start()
	case first.is("COMMIT"):
		return l.commit()
	case first.is("ROLLBACK"):
		return l.rollback()
	case first.is("XA"):
		return l.xa()
	case first.is("CREATE"):
		return l.create()
	case first.is("DROP"):
		return l.drop()
	case first.isOneOf("ALTER", "RENAME", "TRUNCATE", "GRANT", "REVOKE", "CHECK", "REPAIR", "OPTIMIZE", "CACHE", "INSTALL", "UNINSTALL",
		"CHANGE", "STOP", "RESET", "IMPORT"):
		return Implicit | l.touches()
	case first.is("ANALYZE"):
		return l.analyze()
	case first.is("LOAD"):
		return l.load()
	case first.is("GET"):
		return l.assignsVariables()
	case first.isOneOf("USE", "PREPARE", "HANDLER"):
		return State
	case first.isOneOf("CALL", "EXECUTE", "IF", "CASE", "LOOP", "WHILE", "REPEAT", "FOR", "DECLARE"):
		return Hidden | anything
	case first.is("LOCK"):
		return Implicit | State
	case first.is("UNLOCK"):
		return Implicit
	case first.is("FLUSH"):
		return l.flush()
	case first.is("BACKUP"):
		return l.backup()
	case l.next().isSymbol(':'): // the label of a compound statement
		return Hidden | anything
	}
	return anything
}

// do: a deadlock in a function or a subquery ends the transaction, and MariaDB
// answers OK.
func (l *lexer) do() (seen Effects) {
	from := *l
	if l.has(func(t token) bool { return t.isSymbol('(') }) {
		seen = Hidden
	}
	*l = from
	return seen | l.touches()
}

// begin: MariaDB's BEGIN NOT ATOMIC is a compound statement.
func (l *lexer) begin() Effects {
	if l.next().is("NOT") {
		return Hidden | anything
	}
	l.back()
	return Ends | State
}

func (l *lexer) start() Effects {
	if l.next().is("TRANSACTION") {
		return Ends | State
	}
	l.back()
	return Implicit
}

// commit leaves state with AND CHAIN, and RELEASE leaves no connection.
func (l *lexer) commit() Effects {
	t := l.next()
	if t.is("WORK") {
		t = l.next()
	}
	l.back()
	if t.ends() {
		return Ends
	}
	return Ends | State
}

func (l *lexer) rollback() Effects {
	t := l.next()
	if t.is("WORK") {
		t = l.next()
	}
	if t.is("TO") {
		return 0
	}
	l.back()
	return l.commit()
}

func (l *lexer) xa() Effects {
	if l.next().is("RECOVER") {
		return 0
	}
	l.back()
	return Ends | State
}

// create: of what is temporary only a table commits nothing.
func (l *lexer) create() Effects {
	t := l.next()
	if t.is("OR") {
		l.next() // REPLACE
		t = l.next()
	}
	if !t.is("TEMPORARY") {
		l.back()
		return Implicit | l.touches()
	}
	if l.next().is("TABLE") {
		return State
	}
	l.back()
	return Implicit | State
}

// drop: with the schema in use the connection has none any more.
func (l *lexer) drop() Effects {
	switch t := l.next(); {
	case t.is("PREPARE"):
		return 0
	case t.isOneOf("DATABASE", "SCHEMA"):
		return Implicit | State
	case t.is("TEMPORARY"):
		if l.next().isOneOf("TABLE", "TABLES") {
			return 0
		}
	}
	l.back()
	return Implicit
}

// analyze: MariaDB's ANALYZE of a statement runs it.
func (l *lexer) analyze() Effects {
	switch t := l.next(); {
	case t.isOneOf("TABLE", "TABLES", "LOCAL", "NO_WRITE_TO_BINLOG"):
		return Implicit
	case t.is("FORMAT"):
		l.next() // =
		l.next() // JSON
	default:
		l.back()
	}
	return l.statement()
}

// flush keeps locks WITH READ LOCK, FOR EXPORT, and AND DISABLE CHECKPOINT.
func (l *lexer) flush() Effects {
	if l.has(func(t token) bool { return t.isOneOf("WITH", "FOR", "AND") }) {
		return Implicit | State
	}
	return Implicit
}

func (l *lexer) backup() Effects {
	if l.next().is("UNLOCK") {
		return Implicit
	}
	l.back()
	return Implicit | State
}

func (l *lexer) load() Effects {
	switch t := l.next(); {
	case t.is("INDEX"):
		return Implicit
	case !t.isOneOf("DATA", "XML"):
		l.back()
		return anything
	}
	return l.assignsVariables()
}

// assignsVariables is for statements in which a user variable is a target.
func (l *lexer) assignsVariables() Effects {
	if l.has(func(t token) bool { return t.isSymbol('@') || t.kind == assign || isLockFunction(t.text) }) {
		return State
	}
	return 0
}

// set reads the assignments of SET one by one. What is set for all sessions
// stays on none.
func (l *lexer) set() (seen Effects) {
	switch t := l.next(); {
	case t.is("STATEMENT"): // MariaDB's, for one statement
		return l.setStatement()
	case t.is("DEFAULT"):
		if l.next().is("ROLE") {
			return Implicit
		}
		l.back()
		return anything
	}
	l.back()
	for {
		seen |= l.target()
		more, value := l.value()
		seen |= value
		if !more {
			return seen
		}
	}
}

// target reads what is assigned to, up to the assignment or the first word of
// what is not one, such as NAMES.
func (l *lexer) target() Effects {
	t := l.next()
	switch {
	case t.isOneOf("GLOBAL", "PERSIST", "PERSIST_ONLY"):
		return 0
	case t.isOneOf("SESSION", "LOCAL"):
		t = l.next()
	case t.is("PASSWORD"):
		return Implicit
	case t.isSymbol('@'):
		if t = l.next(); !t.isSymbol('@') { // a user variable
			l.backAt(t)
			return State
		}
		t = l.next()
		if t.isOneOf("GLOBAL", "PERSIST", "PERSIST_ONLY") {
			return 0
		}
		if t.isOneOf("SESSION", "LOCAL") {
			if t = l.next(); t.isSymbol('.') {
				t = l.next()
			}
		}
	}
	l.backAt(t)
	if t.is("AUTOCOMMIT") || t.kind == quoted && equalFold(t.text, "AUTOCOMMIT") {
		return Ends | State
	}
	return State
}

// backAt has what ends an assignment read once more.
func (l *lexer) backAt(t token) {
	if t.ends() || t.isSymbol(',') {
		l.back()
	}
}

// value reads up to the comma before the next assignment, or to the end.
func (l *lexer) value() (more bool, seen Effects) {
	depth := 0
	for t := l.next(); ; t = l.next() {
		switch {
		case t.ends():
			l.back()
			return false, seen
		case t.isSymbol('('):
			depth++
		case t.isSymbol(')'):
			depth--
		case t.isSymbol(',') && depth <= 0:
			return true, seen
		case (t.kind == word || t.kind == quoted && t.quote != '\'') && isLockFunction(t.text):
			seen |= State
		case t.kind == assign && depth > 0: // in a subquery
			seen |= State
		}
	}
}

// setStatement judges SET STATEMENT by the statement that it is for.
func (l *lexer) setStatement() Effects {
	depth, seen := 0, Effects(0)
	for t := l.next(); !t.ends(); t = l.next() {
		switch {
		case t.isSymbol('('):
			depth++
		case t.isSymbol(')'):
			depth--
		case (t.kind == word || t.kind == quoted && t.quote != '\'') && isLockFunction(t.text), t.kind == assign && depth > 0:
			seen |= State
		case t.is("FOR") && depth <= 0:
			return seen | l.statement()
		}
	}
	l.back()
	return anything
}

// SchemaOf is the schema that a USE statement names, "" if it is none or in
// doubt.
func SchemaOf(query string) string {
	l := lexer{text: query}
	if !l.next().is("USE") {
		return ""
	}
	start := l.pos
	name := l.next()
	behind := l.next()
	if behind.isSymbol(';') {
		behind = l.next()
	}
	if behind.kind != end || l.executables > 0 || name.kind != word && (name.kind != quoted || name.quote != '`') {
		return ""
	}
	for _, b := range []byte(query[start:]) {
		if b >= 0x80 { // which is white space to the lexer, and to a server part of a name
			return ""
		}
	}
	return name.text
}
