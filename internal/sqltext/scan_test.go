package sqltext

import (
	"strings"
	"testing"
	"time"
)

func TestScan(t *testing.T) {
	for _, tt := range []struct {
		query string
		want  Effects
	}{
		{"SELECT 1", 0},
		{"select a from t where mail = 'a@b.c'", 0},
		{"(SELECT 1) UNION (SELECT 2)", 0},
		{"WITH x AS (SELECT 1) SELECT * FROM x", 0},
		{"/* trace */ INSERT INTO t VALUES (1)", 0},
		{"-- why\nUPDATE t SET a = 1", 0}, {"--\twhy\nUPDATE t SET a = 1", 0}, {"--\nUPDATE t SET a = 1", 0},
		{"SELECT @@version", 0},
		{"SELECT @x", 0},
		{"SAVEPOINT a", 0}, {"ROLLBACK TO a", 0}, {"rollback work to savepoint a", 0}, {"RELEASE SAVEPOINT a", 0},
		{"", 0}, {"-- nothing", 0}, {";", 0}, {"DO 1", 0}, {"do 0", 0},

		// What is in a literal or a comment is none of the statement's.
		{"SELECT 'a := b'", 0}, {"SELECT \"GET_LOCK(\"", 0}, {"SELECT 1 /* INTO @x */", 0}, {"INSERT INTO t VALUES ('into @x')", 0},
		{"INSERT INTO t VALUES ('it''s INTO @x')", 0}, {"SELECT 1 -- := @x", 0}, {"SELECT `a:=b`, 'x@y.z' FROM t", 0},
		{"INSERT INTO t VALUES ('\\n := x')", 0}, {"SELECT get_lock FROM t", 0}, {"SELECT `get_lock` FROM t", 0},
		// Where it is in doubt what is in one, it counts.
		{"SELECT 'it\\'s := x'", State}, {"SELECT '\\', GET_LOCK(", State}, {"SELECT '\\', @x := 1 -- '", State},

		{"SELECT @x := 1", State}, {"SELECT @x:=1", State}, {"UPDATE t SET a = (@x := a + 1)", State},
		{"SELECT a INTO @x FROM t", State}, {"SELECT a into@x FROM t", State}, {"TABLE t INTO @x", State},
		{"SELECT a, b INTO @x, @y FROM t", State}, {"SELECT a INTO @'x y' FROM t", State}, {"SELECT a INTO @`x` FROM t", State},
		{"SELECT a INTO /* here */ @x FROM t", State},
		{"SELECT a INTO -- here\n@x FROM t", State}, {"SELECT a INTO # here\n@x FROM t", State},
		{"SELECT a INTO\v@x FROM t", State}, {"SELECT a INTO\xa0@x FROM t", State}, {"SELECT a\xa0INTO\xa0\xa0@x FROM t", State},
		{"SELECT a /*!INTO*/ @x FROM t", State}, {"SELECT a INTO/*!@x*/ FROM t", State}, {"SELECT a INTO /*!99999 b */ @x FROM t", State},
		{"SELECT '`\xe9`' , `a`, @x := 1", State}, {"SELECT \x81`, @x := 1, '`'", State},
		{"SELECT GET_LOCK('a', 1)", State}, {"SELECT `get_lock`('a', 1)", State}, {"SELECT \"GET_LOCK\" ('a', 1)", State},
		{"SELECT get_lock /* x */ ('a', 1)", State}, {"INSERT INTO t SELECT service_get_write_locks('a', 'b', 1)", State},
		{"SELECT RELEASE_LOCK('a'), IS_FREE_LOCK('b')", 0},
		{"DO get_lock ('a', 1)", State | Hidden}, {"DO f()", Hidden}, {"DO (SELECT 1 FROM t FOR UPDATE)", Hidden}, {"DO SLEEP (1)", Hidden}, {"DO '('", 0},
		{"SET @x = 1", State}, {"SET @autocommit = 1", State}, {"SET @x = @@autocommit", State}, {"SET @x = 'autocommit'", State},
		{"SET SESSION sql_mode = ''", State}, {"SET sql_mode = 'PASSWORD,AUTOCOMMIT'", State},
		{"SET time_zone = '+00:00'", State}, {"SET NAMES latin1", State}, {"SET CHARACTER SET latin1", State}, {"SET ROLE r", State},
		{"SET TRANSACTION READ ONLY", State}, {"SET SESSION TRANSACTION READ ONLY", State}, {"SET RESOURCE GROUP g", State},
		{"SET GLOBAL max_connections = 9", 0}, {"SET @@GLOBAL.autocommit = 0", 0}, {"SET PERSIST a = 1", 0}, {"set @@persist_only.a = 1, global b = 2", 0},
		{"SET GLOBAL TRANSACTION READ ONLY", 0}, {"SET GLOBAL a = (SELECT @x := 1)", State}, {"SET GLOBAL a = GET_LOCK('a', 1)", State},
		{"SET GLOBAL a = 1, b = 2", State}, {"SET GLOBAL a = (1, autocommit), @@b = 2", State}, {"SET GLOBAL a = ',', @x = 1", State},
		{"USE other", State},
		{"CREATE TEMPORARY TABLE a (b INT)", State},
		{"CREATE OR REPLACE TEMPORARY TABLE a (b INT)", State},
		{"DROP TEMPORARY TABLE a", 0}, {"DROP TEMPORARY TABLES IF EXISTS a", 0}, {"DROP PREPARE s", 0}, {"DEALLOCATE PREPARE s", 0},
		{"PREPARE s FROM 'SELECT 1'", State}, {"HANDLER t OPEN", State},
		{"LOAD DATA LOCAL INFILE 'x' INTO TABLE t (a, @b)", State}, {"LOAD DATA LOCAL INFILE 'x' INTO TABLE t (a, b)", 0},
		{"GET DIAGNOSTICS @a = NUMBER", State}, {"GET DIAGNOSTICS a = NUMBER", 0},
		{"CHECKSUM TABLE t", 0}, {"HELP 'x'", 0}, {"SIGNAL SQLSTATE '45000'", 0}, {"SHOW TABLES", 0}, {"XA RECOVER", 0},
		{"ANALYZE SELECT 1", 0}, {"ANALYZE FORMAT=JSON SELECT 1", 0}, {"ANALYZE FORMAT=JSON SELECT @x := 1", State}, {"ANALYZE UPDATE t SET a = 1", 0},
		{"ANALYZE TABLE t", Implicit}, {"ANALYZE NO_WRITE_TO_BINLOG TABLE t", Implicit},
		{"EXPLAIN SELECT 1", 0}, {"EXPLAIN FORMAT=JSON INTO @x SELECT 1", State},
		{"CALL p()", Hidden | Implicit | State}, {"{CALL p()}", Implicit | State},
		{"EXECUTE IMMEDIATE 'COMMIT'", Hidden | Implicit | State}, {"EXECUTE s", Hidden | Implicit | State},
		{"BEGIN NOT ATOMIC SELECT 1; END", Hidden | Implicit | State}, {"IF 1 THEN COMMIT; END IF", Hidden | Implicit | State},
		{"a: LOOP COMMIT; END LOOP", Hidden | Implicit | State},
		{"SET STATEMENT max_statement_time=1 FOR CREATE TABLE a (b INT)", Implicit},
		{"SET STATEMENT max_statement_time=1 FOR SELECT 1", 0}, {"SET STATEMENT a=1, b=(SELECT 1 FOR UPDATE) FOR SELECT @x := 1", State},
		{"SET STATEMENT a='FOR' FOR COMMIT", Ends}, {"SET STATEMENT a=1", Implicit | State},

		{"COMMIT", Ends}, {"commit work", Ends}, {"ROLLBACK", Ends}, {"COMMIT AND CHAIN", Ends | State},
		{"rollback and chain", Ends | State}, {"BEGIN", Ends | State}, {"BEGIN WORK", Ends | State}, {"START TRANSACTION READ ONLY", Ends | State},
		{"start transaction", Ends | State}, {"XA START 'x'", Ends | State}, {"XA COMMIT 'x'", Ends | State},
		{"SET autocommit = 1", Ends | State}, {"SET SESSION autocommit = 0", Ends | State}, {"SET @@session . autocommit = 0", Ends | State},
		{"SET LOCAL `autocommit` = 0", Ends | State}, {"SET @@autocommit = 0", Ends | State}, {"SET @x = 1, @@autocommit := 0", Ends | State},
		{"SET @x = 'it\\'s', autocommit = 0", Ends | State}, {"SET @x = '\\', autocommit = 0 -- '", Ends | State},
		{"/* x */ COMMIT", Ends}, {"COMMIT;", Ends}, {"\xa0COMMIT", Ends},
		{"--\tx\nCOMMIT", Ends}, {"--\nCOMMIT", Ends},

		{"CREATE TABLE a (b INT)", Implicit},
		{"CREATE TABLE a SELECT @x := 1 AS b", Implicit | State},
		{"CREATE OR REPLACE TABLE a (b INT) COMMENT 'temporary'", Implicit},
		{"CREATE TABLE a (b INT) COMMENT 'replace temporary'", Implicit},
		{"CREATE OR REPLACE VIEW a AS SELECT 1 AS temporary", Implicit},
		{"CREATE TEMPORARY SEQUENCE s", Implicit | State}, {"DROP TEMPORARY SEQUENCE s", Implicit},
		{"SET DEFAULT ROLE r TO u", Implicit}, {"SET DEFAULT ROLE NONE", Implicit},
		{"SET PASSWORD = 'x'", Implicit}, {"SET PASSWORD FOR u = 'x'", Implicit},
		{"SET @x = 1, PASSWORD = ''", Implicit | State}, // MariaDB
		{"ALTER TABLE a ADD c INT", Implicit},
		{"DROP TABLE a", Implicit}, {"DROP DATABASE a", Implicit | State}, {"DROP SCHEMA IF EXISTS a", Implicit | State},
		{"TRUNCATE t", Implicit},
		{"LOCK TABLES t WRITE", Implicit | State},
		{"UNLOCK TABLES", Implicit},
		{"FLUSH TABLES", Implicit}, {"FLUSH TABLES WITH READ LOCK", Implicit | State}, {"FLUSH TABLES t FOR EXPORT", Implicit | State},
		{"BACKUP STAGE START", Implicit | State}, {"BACKUP UNLOCK", Implicit},
		{"LOAD INDEX INTO CACHE t", Implicit}, {"CACHE INDEX t IN c", Implicit},
		{"GRANT ALL ON *.* TO x", Implicit},
		{"START SLAVE", Implicit},
		{"FROBNICATE", Implicit | State}, {"1", Implicit | State},

		// What some servers execute and others skip.
		{"/*!50000 SELECT 1 */", 0}, {"/*! SET @x = 1 */", State}, {"/*!50000 COMMIT */", Ends | Implicit | State},
		{"/*M!100000 CREATE TABLE a (b INT) */", Implicit | State}, {"/*!99999 SELECT */ COMMIT", Ends | Implicit | State},
		{"/*!99999 SELECT */ /*!50000 CREATE */ TABLE a (b INT)", Implicit | State},
		{"/*! SELECT /* x */ 1 */", Implicit | State}, {"SELECT /*!40001 SQL_NO_CACHE */ * FROM t", 0}, {"CREATE /*!50000 TEMPORARY */ TABLE a (b INT)", Implicit | State},
		{"INSERT /*!50000 INTO */ t VALUES ('@x')", 0},
	} {
		if got := Scan(tt.query); got != tt.want {
			t.Errorf("%q: %04b, want %04b", tt.query, got, tt.want)
		}
	}
}

func TestScanSeveral(t *testing.T) {
	for query, want := range map[string]Effects{
		"SELECT 1": 0, "SELECT 1;": 0, "UPDATE t SET a = 1; UPDATE t SET a = 2": 0, ";SELECT 1;;": 0,
		"SELECT 1; SET @x = 1":                   State,
		"SET @x = 1; SELECT 1":                   State,
		"SELECT ';'; SELECT @x := 1":             State,
		"SELECT 1; COMMIT":                       Implicit | State,
		"COMMIT; SELECT 1":                       Ends | Implicit | State,
		"SELECT 1; CALL p()":                     Hidden | Implicit | State,
		"SELECT 1; DO f()":                       Hidden | Implicit | State,
		"SELECT '\\'; COMMIT; -- '":              Implicit | State,
		"/*! SELECT 1; COMMIT */":                Implicit | State,
		"SELECT 1; CREATE TABLE a (b INT)":       Implicit | State,
		"CREATE PROCEDURE p() BEGIN COMMIT; END": Implicit | State,
	} {
		if got := ScanSeveral(query); got != want {
			t.Errorf("%q: %04b, want %04b", query, got, want)
		}
	}
}

func TestSchemaOf(t *testing.T) {
	for query, want := range map[string]string{
		"USE other": "other", "use `other` ;": "other", "/* x */ USE other -- y": "other",
		"USE `o``ther`": "", "USE": "", "SELECT 1": "", "USE \"other\"": "", "USE öther": "", "USE other.t": "", "USE /*! other */": "", "USE a-b": "",
	} {
		if got := SchemaOf(query); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
}

func TestSeveralStatements(t *testing.T) {
	for query, want := range map[string]bool{
		"SELECT 1":                     false,
		"SELECT 1;":                    false,
		"SELECT 1; ":                   false,
		"SELECT 1; -- done":            false,
		"SELECT 1; SELECT 2":           true,
		"INSERT INTO t VALUES ('a;b')": false,
		"INSERT INTO t VALUES ('it''s;', \"x;y\")": false,
		"SELECT 1 /* a; b */":                      false,
		"SELECT `a;b` FROM t # c; d":               false,
		"SELECT 'a'; COMMIT":                       true,
		"SELECT 'a\\'; COMMIT":                     true,
		"SELECT 'open; COMMIT":                     true,
		"/*! SELECT 1; COMMIT */":                  true,
		"SELECT 1 /*!999999 ' */; COMMIT -- '":     true,
		"SELECT 1 --\t'\n; COMMIT -- '":            true,
		"SELECT 1; --\tdone":                       false,
	} {
		if got := Several(query); got != want {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
}

// No text makes reading it slow: what reads a part of it again and again needs
// minutes here.
func TestNoTextIsReadAgainAndAgain(t *testing.T) {
	const size = 1 << 20
	for _, part := range []string{"INTO/*", "INTO ", "@ ", "'a' ", "/*!", "/*! /* ", "_lock", ":= '", "'\\\\'", "a@b.c ", "--\n", "`", "(", "GET_LOCK ", "; "} {
		for _, verb := range []string{"SELECT ", "SET ", "DO ", "/*! ", "CREATE ", ""} {
			query := verb + strings.Repeat(part, size/len(part))
			begun := time.Now()
			ScanSeveral(query)
			Several(query)
			AsksNotToWait(query)
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("%q and so on: %s for %d bytes", query[:20], took, len(query))
			}
		}
	}
}

var everydayStatements = map[string]string{
	"SELECT":      "SELECT id, name, email, created_at FROM users WHERE id = ? AND deleted_at IS NULL",
	"INSERT":      "INSERT INTO orders (user_id, product_id, amount, note) VALUES (?, ?, ?, ?)",
	"UPDATE":      "UPDATE accounts SET balance = balance - ? WHERE id = ? AND balance >= ?",
	"DELETE":      "DELETE FROM sessions WHERE expires_at < NOW() LIMIT 1000",
	"mail":        "SELECT id FROM users WHERE email = 'somebody@example.com'",
	"commented":   "/* trace=1 */ SELECT id FROM users WHERE id = ?",
	"16 MiB":      "INSERT INTO blobs VALUES ('" + strings.Repeat("x", 16<<20) + "')",
	"16 MiB rows": "INSERT INTO t (a_b, c_d) VALUES " + strings.Repeat("('some text', 'a_b', 'x@y.z', 12),", 16<<20/34) + "(1,2,3,4)",
	"16 MiB JSON": "INSERT INTO t VALUES ('" + strings.Repeat(`{"a":"into @b -- #","c":1},`, 16<<20/27) + "')",
}

func BenchmarkScan(b *testing.B) {
	for name, query := range everydayStatements {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Scan(query)
			}
		})
	}
}
