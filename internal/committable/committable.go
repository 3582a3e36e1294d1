// Package committable describes the table of committed keys, by which Once and
// VerifyCommit know whether a unit was committed: its name, its DDL, the errors of a
// server that concern it, and whether an existing table can keep their promise. Purge
// removes old keys; the root inserts keys, and looks them up after a lost COMMIT.
package committable

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// Table is the table as statements name it. It does not change.
type Table struct {
	// Name is quoted, and has the schema if that is known: a unit may have changed the
	// default schema by USE.
	Name        string
	NoSchemaErr error // not nil if neither the setting nor the DSN names a schema
}

// New returns the table that the setting names. schema is that of the DSN, for a setting
// without one; below OpenConnector the DSN is not known.
func New(setting, schema string, dsnKnown bool) Table {
	if s, table, ok := strings.Cut(setting, "."); ok {
		return Table{Name: quoteName(s) + "." + quoteName(table)}
	}
	switch {
	case schema != "":
		return Table{Name: quoteName(schema) + "." + quoteName(setting)}
	case dsnKnown:
		return Table{Name: quoteName(setting), NoSchemaErr: fmt.Errorf("livepool: the commit table %s has no schema: "+
			"the DSN names no database; name one there, or set CommitTable (pool_commit_table) to schema.table", setting)}
	}
	return Table{Name: setting}
}

// quoteName quotes an identifier.
func quoteName(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// DDL is the statement that creates the table.
func (ct *Table) DDL() string {
	return "CREATE TABLE IF NOT EXISTS " + ct.Name + ` (
	unit VARBINARY(255) NOT NULL PRIMARY KEY,
	committed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
	KEY (committed_at)
) ENGINE=InnoDB`
}

// Explain adds to a server's error what to do about the table.
func (ct *Table) Explain(err error) error {
	switch mysqlerr.Number(err) {
	case 1146:
		return fmt.Errorf("livepool: the commit table, which Once and VerifyCommit need, does not exist: call CreateCommitTable once, or run %s: %w", ct.DDL(), err)
	case 1142:
		return fmt.Errorf("livepool: the user lacks a privilege on the commit table, which Once and VerifyCommit need: "+
			"GRANT SELECT, INSERT, DELETE ON %s, and where it is still to be created, have that done with %s: %w", ct.Name, ct.DDL(), err)
	}
	return err
}

// Refusal is the error for a table with these defects, nil if there are none.
func (ct *Table) Refusal(defects []string) error {
	if defects == nil {
		return nil
	}
	return fmt.Errorf("livepool: the commit table %s cannot keep the promise of Once and VerifyCommit: %s; "+
		"nothing was applied; rename it, and create it with CreateCommitTable, or with %s", ct.Name, strings.Join(defects, "; "), ct.DDL())
}

// What SHOW CREATE TABLE shows of the table, with and without quotes.
var (
	ddlTemporary = regexp.MustCompile(`(?i)^CREATE\s+TEMPORARY\b`)
	ddlEngine    = regexp.MustCompile("(?i)\n\\)\\s*ENGINE\\s*=\\s*(\\w+)")
	ddlColumn    = regexp.MustCompile("(?im)^\\s*[`\"]?unit[`\"]?\\s+(\\w+)(?:\\((\\d+)\\))?")
	ddlKey       = regexp.MustCompile("(?im)^\\s*(PRIMARY|UNIQUE)\\s+KEY\\s+(?:[`\"]?([^`\"(\n]+?)[`\"]?\\s+)?\\([`\"]?unit[`\"]?(?:\\s+(?:ASC|DESC))?\\)")
)

// transactionalEngines are the engines in which a key is committed, or rolled back, with
// its unit.
var transactionalEngines = []string{"INNODB", "ROCKSDB", "TOKUDB", "NDBCLUSTER", "OCEANBASE"}

// Inspect reads what SHOW CREATE TABLE shows: the name of the unique key on the column
// unit, and the defects for which the table cannot be used. What is not shown is no
// defect.
func Inspect(ddl string) (key string, defects []string) {
	if ddlTemporary.MatchString(ddl) {
		defects = append(defects, "it is temporary")
	}
	if engine := ddlEngine.FindStringSubmatch(ddl); engine != nil && !slices.Contains(transactionalEngines, strings.ToUpper(engine[1])) {
		defects = append(defects, "its engine is "+engine[1]+", in which a key survives the rollback of its unit")
	}
	switch column := ddlColumn.FindStringSubmatch(ddl); {
	case column == nil:
		defects = append(defects, "it has no column unit, or is no table")
	default:
		length, _ := strconv.Atoi(column[2])
		if !strings.EqualFold(column[1], "VARBINARY") {
			defects = append(defects, "its column unit is "+strings.TrimSpace(column[0])+", in which different keys may be equal: it has to be VARBINARY(255)")
		} else if length < MaxKey {
			defects = append(defects, fmt.Sprintf("its column unit holds %d bytes, and may cut longer keys off", length))
		}
	}
	unique := ddlKey.FindStringSubmatch(ddl)
	if unique == nil {
		return "", append(defects, "it has no unique key on the column unit alone and as a whole, so that a key is accepted twice")
	}
	if strings.EqualFold(unique[1], "PRIMARY") {
		return "PRIMARY", defects
	}
	return unique[2], defects
}

// Lookup is the query for how many units with this key there are: 1 or 0.
func (ct *Table) Lookup(key string) string {
	return "SELECT COUNT(*) FROM " + ct.Name + " WHERE unit = " + KeyLiteral(key)
}

// IfCommitted is the end of a Lookup that finds only what has been committed, by all that its
// transaction sees later on. READ UNCOMMITTED sees more, and SERIALIZABLE would wait for a row
// that is being written: there the condition is false before the table is read. MySQL takes
// what begins with /*M! for a comment, MariaDB what begins with /*!507.
const IfCommitted = " AND /*!50720 @@transaction_isolation */ /*M! @@tx_isolation */ IN ('READ-COMMITTED', 'REPEATABLE-READ')"

// MaxKey is the length of the key column, in bytes.
const MaxKey = 255

// KeyLiteral is the key as a literal of SQL: a statement with arguments costs the driver
// another round trip.
func KeyLiteral(key string) string {
	literal := append(make([]byte, 0, len("x''")+2*MaxKey), "x'"...)
	literal = hex.AppendEncode(literal, []byte(key))
	return string(append(literal, '\''))
}
