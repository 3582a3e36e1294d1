package sqltext_test

// The statements of the manuals, run on real servers: what they do to an open
// transaction and leave on their connection, and what Scan says of it.

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
	"github.com/livepool/livepool/internal/sqltext"
)

// statement is a row of testdata/statements.txt.
type statement struct {
	line          int
	server        string
	commits       string
	leavesState   bool
	before, after []string
	text          string
	remark        string
}

func (s *statement) isFor(kind server.Kind) bool {
	return s.server == "both" || (s.server == "MySQL") == (kind == server.MySQL)
}

// number follows "refused " in the remark.
func (s *statement) refusal() uint16 {
	after, ok := strings.CutPrefix(s.remark, "refused ")
	if !ok {
		return 0
	}
	number, _, _ := strings.Cut(after, ":")
	n, _ := strconv.Atoi(number)
	return uint16(n)
}

var notRun = regexp.MustCompile(`^not run \(([a-z_, ]*)\): .`)

func statements(t *testing.T) (list []statement) {
	t.Helper()
	f, err := os.Open("testdata/statements.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if lines.Text() == "" || lines.Text()[0] == '#' {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(lines.Text(), " |")+" | ", " | ")
		if len(cells) < 5 || !slices.Contains([]string{"no", "commits", "ends", "begins"}, cells[1]) || cells[2] != "no" && cells[2] != "state" {
			t.Fatalf("line %d is no row: %q", n, cells)
		}
		s := statement{line: n, server: cells[0], commits: cells[1], leavesState: cells[2] == "state", remark: cells[4]}
		for part := range strings.SplitSeq(cells[3], " ;; ") {
			if before, ok := strings.CutPrefix(part, "< "); ok {
				s.before = append(s.before, before)
			} else if after, ok := strings.CutPrefix(part, "> "); ok {
				s.after = append(s.after, after)
			} else {
				s.text = part
			}
		}
		list = append(list, s)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// What Scan says of each statement is what the table says, or more for a reason.
func TestScanOfTheManuals(t *testing.T) {
	for _, s := range statements(t) {
		seen := sqltext.Scan(s.text)
		ends, state := seen&(sqltext.Ends|sqltext.Implicit) != 0, seen&sqltext.State != 0
		explained := strings.HasPrefix(s.remark, "more: ") || s.refusal() != 0 || notRun.MatchString(s.remark)
		switch {
		case s.commits != "no" && !ends:
			t.Errorf("line %d: %s: seen as %04b, which commits nothing", s.line, s.text, seen)
		case s.leavesState && !state:
			t.Errorf("line %d: %s: seen as %04b, which leaves nothing", s.line, s.text, seen)
		case s.commits == "no" && ends && !explained, !s.leavesState && state && !explained:
			t.Errorf("line %d: %s: seen as %04b, which is too much", s.line, s.text, seen)
		case s.commits != "no" == ends && s.leavesState == state && strings.HasPrefix(s.remark, "more: ") && !strings.Contains(s.text, "USE"):
			t.Errorf("line %d: %s: seen as %04b, which is not more", s.line, s.text, seen)
		}
	}
}

// The table is what real servers do, of every statement that they count.
func TestStatementsOfTheManuals(t *testing.T) {
	t.Parallel()
	for _, kind := range []server.Kind{server.MariaDB118, server.MySQL} {
		t.Run(string(kind), func(t *testing.T) {
			s := servertest.Run(t, kind, "--performance-schema=ON", "--performance-schema-instrument=wait/lock/metadata/sql/mdl=ON")
			l := &lab{t: t, s: s, counted: map[string]bool{}}
			l.open()
			l.knowsHelp()
			for _, row := range statements(t) {
				switch {
				case !row.isFor(kind):
				case notRun.MatchString(row.remark):
					for _, name := range strings.Split(notRun.FindStringSubmatch(row.remark)[1], ", ") {
						l.counted["Com_"+name] = true
					}
				default:
					l.judge(&row)
				}
			}
			for name := range l.values(l.admin, `SHOW GLOBAL STATUS LIKE 'Com\_%'`) {
				if !l.counted[name] {
					t.Errorf("the table has no statement that %s counts", name)
				}
			}
		})
	}
}

// lab is a server with a schema that is made anew after each statement that may
// have changed it, and another, fix, that none changes.
type lab struct {
	t         *testing.T
	s         *server.Server
	db        *sql.DB
	admin     *sql.Conn
	counted   map[string]bool // counters of statements, those that the table has
	furnished bool            // the schema is as it is to be, but for rows
}

func (l *lab) open() {
	db, err := sql.Open("mysql", l.s.DSN())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { db.Close() })
	db.SetMaxIdleConns(-1)
	l.db = db
	l.admin = l.conn()
	for _, q := range []string{
		"SET GLOBAL log_bin_trust_function_creators = 1", "SET GLOBAL lock_wait_timeout = 20",
		"CREATE DATABASE fix", "CREATE TABLE fix.one (a INT)", "INSERT INTO fix.one VALUES (1)", "CREATE TABLE fix.m (a INT PRIMARY KEY) ENGINE=MyISAM",
		"CREATE PROCEDURE fix.p() SET @x = 1", "CREATE PROCEDURE fix.harmless() SELECT 1", "CREATE PROCEDURE fix.committing() COMMIT",
	} {
		l.exec(l.admin, q)
	}
}

// notStatements are chapters on statements in the server's help that are no
// statements of their own.
var notStatements = []string{"DUAL", "JOIN", "UNION", "EXCEPT", "INTERSECT", "FOREIGN KEY", "INSERT SELECT", "INSERT DELAYED", "PARENTHESIZED QUERY EXPRESSIONS"}

// knowsHelp holds the table against the list of statements in the server's own
// help, where it has one.
func (l *lab) knowsHelp() {
	for name := range l.values(l.admin, "SELECT t.name, 0 FROM mysql.help_topic t JOIN mysql.help_category c USING (help_category_id) WHERE c.name IN ("+
		"'Account Management','Administration','Components','Data Definition','Data Manipulation','Plugins','Prepared Statements',"+
		"'Replication Statements','Table Maintenance','Transactions','Utility')") {
		verb := strings.TrimSuffix(strings.TrimSuffix(name, " STATEMENT"), " COMMAND")
		if !slices.Contains(notStatements, name) && !slices.ContainsFunc(statements(l.t), func(s statement) bool {
			return s.isFor(l.s.Kind()) && strings.HasPrefix(strings.ToUpper(s.text), verb)
		}) {
			l.t.Errorf("the table has no statement of the chapter %s", name)
		}
	}
}

func (l *lab) conn() *sql.Conn {
	l.t.Helper()
	c, err := l.db.Conn(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

func (l *lab) exec(c *sql.Conn, query string) {
	l.t.Helper()
	if _, err := c.ExecContext(l.t.Context(), query); err != nil {
		l.t.Fatalf("%s: %v", query, err)
	}
}

// run runs a statement and reads all that it says.
func run(ctx context.Context, c *sql.Conn, query string) error {
	rows, err := c.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for more := true; more; more = rows.NextResultSet() {
		for rows.Next() {
		}
	}
	return rows.Err()
}

// values are the first two columns of a result; an error is one of them.
func (l *lab) values(c *sql.Conn, query string) map[string]string {
	all := map[string]string{}
	rows, err := c.QueryContext(l.t.Context(), query)
	if err != nil {
		all["error of "+query] = err.Error()
		return all
	}
	defer rows.Close()
	columns, _ := rows.Columns()
	for rows.Next() {
		var name, value sql.NullString
		cells := []any{&name, &value}
		for len(cells) < len(columns) {
			cells = append(cells, new(any))
		}
		if err := rows.Scan(cells...); err != nil {
			l.t.Fatalf("%s: %v", query, err)
		}
		all[name.String] = value.String
	}
	return all
}

// fresh gives the statement a connection and what it needs.
func (l *lab) fresh(row *statement) *sql.Conn {
	l.t.Helper()
	if !l.furnished {
		l.furnish()
	}
	for _, q := range []string{"DELETE FROM probe", "DELETE FROM t", "INSERT INTO t (a) VALUES (1)"} {
		l.exec(l.admin, q)
	}
	l.furnished = row.commits == "no" && row.before == nil
	c := l.conn()
	l.exec(c, "USE lab")
	for _, q := range row.before {
		l.exec(c, q)
	}
	return c
}

func (l *lab) furnish() {
	for _, q := range []string{
		"DROP DATABASE IF EXISTS lab", "CREATE DATABASE lab", "USE lab",
		"CREATE TABLE t (a INT PRIMARY KEY, b INT, c TEXT)", "CREATE TABLE u (a INT)", "CREATE TABLE probe (a INT)",
	} {
		l.exec(l.admin, q)
	}
}

func (l *lab) tidy(row *statement, c *sql.Conn) {
	c.Close()
	for _, q := range row.after {
		_, _ = l.admin.ExecContext(l.t.Context(), q)
	}
}

// probed says whether another connection sees the row that was inserted.
func (l *lab) probed() bool {
	l.t.Helper()
	var n int
	if err := l.admin.QueryRowContext(l.t.Context(), "SELECT COUNT(*) FROM lab.probe").Scan(&n); err != nil {
		l.t.Fatal(err)
	}
	return n > 0
}

// minded reports an error that the table does not have, and says whether there
// is one.
func (l *lab) minded(row *statement, err error) (refused bool) {
	var my *mysql.MySQLError
	switch {
	case err == nil:
		return false
	case errors.As(err, &my) && my.Number == row.refusal():
		return true
	}
	l.t.Errorf("line %d: %s: %v", row.line, row.text, err)
	return true
}

// judge runs the statement in a transaction and outside of one.
func (l *lab) judge(row *statement) {
	l.t.Helper()
	c := l.fresh(row)
	for _, q := range []string{"BEGIN", "INSERT INTO probe VALUES (1)", "SAVEPOINT mark"} {
		l.exec(c, q)
	}
	refused := l.minded(row, run(l.t.Context(), c, row.text))
	visible := l.probed()
	_, gone := c.ExecContext(l.t.Context(), "RELEASE SAVEPOINT mark")
	ended := gone != nil
	if !refused || ended || visible {
		if want := row.commits != "no"; ended != want || row.commits == "commits" && !visible || row.commits == "no" && visible {
			l.t.Errorf("line %d: %s: it is told to do this to a transaction: %s; the row is visible to others: %v, the savepoint: %v", row.line, row.text, row.commits, visible, gone)
		}
	} else if row.commits == "commits" {
		l.t.Errorf("line %d: %s: it was refused, and has committed nothing", row.line, row.text)
	}
	l.tidy(row, c)

	c = l.fresh(row)
	idle := l.state(c)
	before := l.values(c, `SHOW SESSION STATUS LIKE 'Com\_%'`)
	l.minded(row, run(l.t.Context(), c, row.text))
	_, inserted := c.ExecContext(l.t.Context(), "INSERT INTO lab.probe VALUES (1)")
	after := l.values(c, `SHOW SESSION STATUS LIKE 'Com\_%'`)
	for name, n := range after {
		if n != before[name] {
			l.counted[name] = true
		}
	}
	left := differences(idle, l.state(c))
	if inserted != nil || !l.probed() {
		left = append(left, fmt.Sprintf("what follows is not committed: %v", inserted))
	}
	left = append(left, l.objects(c, strings.Join(row.before, ";"))...)
	if (left != nil) != row.leavesState {
		l.t.Errorf("line %d: %s: it leaves %q", row.line, row.text, left)
	}
	l.tidy(row, c)
}

// moving are variables that change by themselves.
const moving = "'timestamp','last_insert_id','insert_id','identity','rand_seed1','rand_seed2','error_count','warning_count','last_gtid','pseudo_thread_id','statement_id','in_transaction'"

// state is what there is on a connection: variables, locks, and the like.
func (l *lab) state(c *sql.Conn) map[string]string {
	thread := "(SELECT thread_id FROM performance_schema.threads WHERE processlist_id = CONNECTION_ID())"
	variables := "SELECT v.VARIABLE_NAME, v.VARIABLE_VALUE FROM information_schema.SESSION_VARIABLES v JOIN information_schema.SYSTEM_VARIABLES s USING (VARIABLE_NAME) " +
		"WHERE s.VARIABLE_SCOPE IN ('SESSION', 'SESSION ONLY') AND LOWER(v.VARIABLE_NAME) NOT IN (" + moving + ")"
	users := "SELECT CONCAT('@', VARIABLE_NAME), VARIABLE_VALUE FROM information_schema.USER_VARIABLES"
	if l.s.Kind() == server.MySQL {
		variables = "SELECT VARIABLE_NAME, VARIABLE_VALUE FROM performance_schema.variables_by_thread WHERE THREAD_ID = " + thread + " AND VARIABLE_NAME NOT IN (" + moving + ")"
		users = "SELECT CONCAT('@', VARIABLE_NAME), VARIABLE_VALUE FROM performance_schema.user_variables_by_thread WHERE THREAD_ID = " + thread
	}
	all := map[string]string{}
	for _, query := range []string{
		variables, users,
		"SELECT 'schema', DATABASE()", "SELECT 'role', CURRENT_ROLE()", "SELECT 'time', IF(@@timestamp < 100, 'stands still', 'runs')",
		"SELECT CONCAT('lock on ', OBJECT_TYPE, ' ', COALESCE(OBJECT_NAME, '')), LOCK_TYPE FROM performance_schema.metadata_locks WHERE OWNER_THREAD_ID = " + thread +
			" AND COALESCE(OBJECT_SCHEMA, '') NOT IN ('performance_schema', 'information_schema', 'mysql')",
	} {
		maps.Copy(all, l.values(c, query))
	}
	return all
}

// objects are those on a connection that it must be asked for by name, but for
// those that were there before.
func (l *lab) objects(c *sql.Conn, before string) (found []string) {
	if strings.Contains(before, "TEMPORARY") {
		// of the statement before
	} else if l.s.Kind() == server.MySQL {
		if ddl := l.values(c, "SHOW CREATE TABLE made")["made"]; strings.HasPrefix(ddl, "CREATE TEMPORARY") {
			found = append(found, "a temporary table")
		}
	} else if n := l.values(c, "SELECT 'n', COUNT(*) FROM information_schema.TABLES WHERE TABLE_TYPE LIKE 'TEMPORARY%'")["n"]; n != "0" {
		found = append(found, n+" temporary tables")
	}
	if err := run(l.t.Context(), c, "EXECUTE s"); err == nil && !strings.Contains(before, "PREPARE s") {
		found = append(found, "a prepared statement")
	}
	if err := run(l.t.Context(), c, "HANDLER t CLOSE"); err == nil && !strings.Contains(before, "HANDLER") {
		found = append(found, "an open handler")
	}
	return found
}

// differences are what is new or has changed.
func differences(before, after map[string]string) (found []string) {
	for name, value := range after {
		if old, had := before[name]; !had || old != value {
			found = append(found, fmt.Sprintf("%s: %q, was %q", name, value, old))
		}
	}
	return found
}
