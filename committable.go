// committable.go is the table of committed keys: its name, whether it can keep
// the promise of Once and VerifyCommit, and its purge. What the keys are for is
// once.go's affair.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// commitTable is the table as statements name it: always with its schema, for a
// unit may have said USE another. It does not change.
type commitTable struct {
	name  string
	wrong error // there is no schema
}

// newCommitTable takes the schema from the DSN, if the setting has none. Below
// OpenConnector the DSN is not known.
func newCommitTable(setting, schema string, dsnKnown bool) commitTable {
	if s, table, ok := strings.Cut(setting, "."); ok {
		return commitTable{name: quoted(s) + "." + quoted(table)}
	}
	switch {
	case schema != "":
		return commitTable{name: quoted(schema) + "." + quoted(setting)}
	case dsnKnown:
		return commitTable{name: quoted(setting), wrong: fmt.Errorf("livepool: the commit table %s has no schema: "+
			"the DSN names no database; name one there, or set CommitTable (pool_commit_table) to schema.table", setting)}
	}
	return commitTable{name: setting}
}

func quoted(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// ddl creates it.
func (ct *commitTable) ddl() string {
	return "CREATE TABLE IF NOT EXISTS " + ct.name + ` (
	unit VARBINARY(255) NOT NULL PRIMARY KEY,
	committed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
	KEY (committed_at)
) ENGINE=InnoDB`
}

// explain adds to a server's error what is to be done about the table.
func (ct *commitTable) explain(err error) error {
	switch errorNumber(err) {
	case 1146:
		return fmt.Errorf("livepool: the commit table, which Once and VerifyCommit need, does not exist: call CreateCommitTable once, or run %s: %w", ct.ddl(), err)
	case 1142:
		return fmt.Errorf("livepool: the user lacks a privilege on the commit table, which Once and VerifyCommit need: "+
			"GRANT SELECT, INSERT, DELETE ON %s, and where it is still to be created, have that done with %s: %w", ct.name, ct.ddl(), err)
	}
	return err
}

// CreateCommitTable creates the table that Once and VerifyCommit need
// (Config.CommitTable), if it does not exist. One that exists and cannot keep their
// promise is an error.
func (p *Pool) CreateCommitTable(ctx context.Context) error {
	ct := &p.ctr.commits
	if ct.wrong != nil {
		return ct.wrong
	}
	if _, err := p.ExecContext(ctx, ct.ddl()); err != nil {
		return fmt.Errorf("livepool: creating the commit table %s: %w", ct.name, ct.explain(err))
	}
	if !p.ctr.mysql {
		return nil
	}
	_, err := ct.inspect(ctx, p.DB)
	return err
}

// inspect looks at the table, and returns the name of its unique key.
func (ct *commitTable) inspect(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}) (key string, err error) {
	rows, err := db.QueryContext(ctx, "SHOW CREATE TABLE "+ct.name)
	if err != nil {
		return "", ct.explain(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return "", err
	}
	row := make([]sql.NullString, len(columns))
	into := make([]any, len(columns))
	for i := range row {
		into[i] = &row[i]
	}
	if rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return "", err
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(row) < 2 {
		return "", err
	}
	key, lacks := inspectDDL(row[1].String)
	return key, ct.refusal(lacks)
}

// refusal is the error of a table that lacks something, nil if it does not.
func (ct *commitTable) refusal(lacks []string) error {
	if lacks == nil {
		return nil
	}
	return fmt.Errorf("livepool: the commit table %s cannot keep the promise of Once and VerifyCommit: %s; "+
		"nothing was applied; rename it, and create it with CreateCommitTable, or with %s", ct.name, strings.Join(lacks, "; "), ct.ddl())
}

// What SHOW CREATE TABLE says of what matters, with and without quotes.
var (
	ddlTemporary = regexp.MustCompile(`(?i)^CREATE\s+TEMPORARY\b`)
	ddlEngine    = regexp.MustCompile("(?i)\n\\)\\s*ENGINE\\s*=\\s*(\\w+)")
	ddlColumn    = regexp.MustCompile("(?im)^\\s*[`\"]?unit[`\"]?\\s+(\\w+)(?:\\((\\d+)\\))?")
	ddlKey       = regexp.MustCompile("(?im)^\\s*(PRIMARY|UNIQUE)\\s+KEY\\s+(?:[`\"]?([^`\"(\n]+?)[`\"]?\\s+)?\\([`\"]?unit[`\"]?(?:\\s+(?:ASC|DESC))?\\)")
)

// transactional are the engines that keep a key exactly if they keep the work.
var transactional = []string{"INNODB", "ROCKSDB", "TOKUDB", "NDBCLUSTER", "OCEANBASE"}

// inspectDDL finds what a table of keys lacks: nil if nothing, or if that is not
// shown.
func inspectDDL(ddl string) (key string, lacks []string) {
	if ddlTemporary.MatchString(ddl) {
		lacks = append(lacks, "it is temporary")
	}
	if engine := ddlEngine.FindStringSubmatch(ddl); engine != nil && !containsFold(transactional, engine[1]) {
		lacks = append(lacks, "its engine is "+engine[1]+", in which a key survives the rollback of its unit")
	}
	switch column := ddlColumn.FindStringSubmatch(ddl); {
	case column == nil:
		lacks = append(lacks, "it has no column unit, or is no table")
	default:
		length, _ := strconv.Atoi(column[2])
		if !strings.EqualFold(column[1], "VARBINARY") {
			lacks = append(lacks, "its column unit is "+strings.TrimSpace(column[0])+", in which different keys may be equal: it has to be VARBINARY(255)")
		} else if length < maxKey {
			lacks = append(lacks, fmt.Sprintf("its column unit holds %d bytes, and may cut longer keys off", length))
		}
	}
	unique := ddlKey.FindStringSubmatch(ddl)
	if unique == nil {
		return "", append(lacks, "it has no unique key on the column unit alone and as a whole, so that a key is accepted twice")
	}
	if strings.EqualFold(unique[1], "PRIMARY") {
		return "PRIMARY", lacks
	}
	return unique[2], lacks
}

func containsFold(words []string, word string) bool {
	for _, w := range words {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

// checkCommitTable looks at the commit table of the connection's server before the
// first key is inserted there: once for each server, or for each connection where
// the server does not say who it is. SHOW CREATE TABLE takes no snapshot, as
// MySQL's information_schema does, so that a unit that is under way is not
// disturbed. A server that does not show it is trusted.
func (c *conn) checkCommitTable(ctx context.Context) error {
	if c.keepsKeys || c.ctr.servers.keepsKeys(c.facts, false) {
		c.keepsKeys = true
		return nil
	}
	ct := &c.ctr.commits
	query, mark := "SHOW CREATE TABLE "+ct.name, c.written()
	row, err := c.inner.askRow(ctx, query)
	switch {
	case isAnswer(err) && (errorNumber(err) == 0 || c.ctr.classify(err)&(TxGone|ConnDead|Retry|StatementUndone) == 0):
		c.ctr.cfg.logger().Debug("livepool: the server does not show the commit table; whether it can keep the promise of Once and VerifyCommit is not known",
			slog.String("addr", c.ctr.addr), slog.String("table", ct.name), slog.Any("cause", err))
		c.prove()
		return nil // a table that is not there is the insert's to tell
	case err != nil:
		return c.failed(ctx, err, query, mark, effectNone)
	case len(row) < 2:
		return nil
	}
	c.prove()
	if _, lacks := inspectDDL(row[1]); lacks != nil {
		return ct.refusal(lacks)
	}
	c.keepsKeys = true
	c.ctr.servers.keepsKeys(c.facts, true)
	return nil
}

// keepsKeys says whether the commit table of a server was seen to keep the promise.
func (ss *servers) keepsKeys(facts *serverFacts, now bool) bool {
	if facts == nil {
		return false
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.known[facts.server]
	if s == nil {
		return false
	}
	s.keepsKeys = s.keepsKeys || now
	return s.keepsKeys
}

// purgeBatch bounds the locks that PurgeCommits holds at a time, and for how long.
const purgeBatch = 100

// PurgeCommits removes the keys of committed units that are older than olderThan
// and returns how many. A key's age is counted from its insert, at the beginning
// of its unit (the server's clock). Once it is removed such a unit would be
// applied again: choose a time beyond the longest unit and any redelivery.
//
// It works in small transactions of its own, beside units that go on, and ends
// with the keys that were old when it began. If it fails it returns how many it
// has removed by then.
func (p *Pool) PurgeCommits(ctx context.Context, olderThan time.Duration) (removed int64, err error) {
	if olderThan < 0 {
		return 0, fmt.Errorf("livepool: PurgeCommits(%s): takes a duration of 0 or more", olderThan)
	}
	if err := p.ctr.commits.wrong; err != nil {
		return 0, err
	}
	purge := &purge{table: &p.ctr.commits, olderThan: olderThan}
	for lost := 0; ; {
		err := p.WithSession(ctx, purge.batch, RequiresNew(), Isolation(sql.LevelRepeatableRead), Name("PurgeCommits"))
		if errors.Is(err, ErrCommitUnknown) && lost < 3 && ctx.Err() == nil {
			lost++
			continue // with the same keys: to delete them again tells
		}
		if err != nil {
			return removed, fmt.Errorf("livepool: purging %s, of which %d keys were removed: %w", p.ctr.commits.name, removed, err)
		}
		removed += purge.deleted
		if len(purge.keys) < purgeBatch {
			return removed, nil
		}
		purge.keys, purge.deleted, lost = nil, 0, 0
	}
}

// purge is the state of one PurgeCommits.
type purge struct {
	table     *commitTable
	olderThan time.Duration
	before    string // seconds since 1970 of the server's clock, once that was asked
	index     string // by which a key is found
	keys      []string
	deleted   int64 // of them
}

// batch deletes some old keys, each looked up by its name. A DELETE by their age, or
// of a list of names (IN), would look at the keys between them too: it would lock
// those, and wait for units that are running.
func (pu *purge) batch(ctx context.Context, s *Session) (err error) {
	if pu.index == "" {
		if pu.index, err = pu.table.inspect(ctx, s); err != nil {
			return err
		}
		now := s.QueryRowContext(ctx, fmt.Sprintf("SELECT UNIX_TIMESTAMP() - %.6f", pu.olderThan.Seconds()))
		if err := now.Scan(&pu.before); err != nil {
			return err
		}
	}
	if pu.keys == nil {
		if err := pu.find(ctx, s); err != nil || len(pu.keys) == 0 {
			return err
		}
	}
	res, err := s.ExecContext(ctx, fmt.Sprintf("DELETE %[1]s FROM (SELECT %[2]s AS unit) AS old STRAIGHT_JOIN %[1]s FORCE INDEX (%[3]s) ON %[1]s.unit = old.unit",
		pu.table.name, strings.Join(pu.keys, " AS unit UNION ALL SELECT "), quoted(pu.index)))
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	pu.deleted = max(pu.deleted, n) // none where the lost COMMIT of the first try happened
	return err
}

// find takes the names of some old keys out of a snapshot, which locks nothing. Of
// the conditions the first has the index, the second is right when the clocks
// change.
func (pu *purge) find(ctx context.Context, s *Session) error {
	rows, err := s.QueryContext(ctx, fmt.Sprintf("SELECT unit FROM %s WHERE committed_at <= NOW() - INTERVAL %d MICROSECOND AND UNIX_TIMESTAMP(committed_at) <= %s LIMIT %d",
		pu.table.name, pu.olderThan.Microseconds(), pu.before, purgeBatch))
	if err != nil {
		return err
	}
	defer rows.Close()
	var keys []string
	for rows.Next() {
		var key []byte
		if err := rows.Scan(&key); err != nil {
			return err
		}
		keys = append(keys, keyLiteral(string(key)))
	}
	pu.keys = keys
	return errors.Join(rows.Err(), rows.Close())
}
