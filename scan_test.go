package livepool

import "testing"

func TestScan(t *testing.T) {
	for _, tt := range []struct {
		query string
		want  sight
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
		{"", 0}, {"-- nothing", 0},

		{"SELECT @x := 1", leavesState},
		{"SELECT a INTO @x FROM t", leavesState},
		{"SELECT a, b INTO @x, @y FROM t", leavesState},
		{"SELECT a INTO /* here */ @x FROM t", leavesState},
		{"SELECT a INTO -- here\n@x FROM t", leavesState},
		{"SELECT a INTO\v@x FROM t", leavesState},
		{"SELECT a /*!INTO*/ @x FROM t", leavesState}, {"SELECT a INTO/*!@x*/ FROM t", leavesState},
		{"SELECT GET_LOCK('a', 1)", leavesState},
		{"DO get_lock ('a', 1)", leavesState},
		{"SET @x = 1", leavesState},
		{"SET SESSION sql_mode = ''", leavesState},
		{"SET time_zone = '+00:00'", leavesState},
		{"USE other", leavesState},
		{"CREATE TEMPORARY TABLE a (b INT)", leavesState},
		{"CREATE OR REPLACE TEMPORARY TABLE a (b INT)", leavesState},
		{"DROP TEMPORARY TABLE a", leavesState},
		{"CALL p()", commitsImplicitly | leavesState},
		{"EXECUTE IMMEDIATE 'COMMIT'", commitsImplicitly | leavesState},
		{"SET STATEMENT max_statement_time=1 FOR CREATE TABLE a (b INT)", commitsImplicitly | leavesState},
		{"PREPARE s FROM 'SELECT 1'", leavesState},
		{"LOAD DATA LOCAL INFILE 'x' INTO TABLE t (a, @b)", leavesState},

		{"COMMIT", endsTransaction}, {"commit work", endsTransaction}, {"ROLLBACK", endsTransaction},
		{"rollback and chain", endsTransaction}, {"BEGIN", endsTransaction}, {"START TRANSACTION READ ONLY", endsTransaction},
		{"start transaction", endsTransaction}, {"XA START 'x'", endsTransaction},
		{"SET autocommit = 1", endsTransaction}, {"/* x */ COMMIT", endsTransaction}, {"COMMIT;", endsTransaction},
		{"--\tx\nCOMMIT", endsTransaction}, {"--\nCOMMIT", endsTransaction},

		{"CREATE TABLE a (b INT)", commitsImplicitly | leavesState},
		{"CREATE OR REPLACE TABLE a (b INT) COMMENT 'temporary'", commitsImplicitly | leavesState},
		{"CREATE TABLE a (b INT) COMMENT 'replace temporary'", commitsImplicitly | leavesState},
		{"CREATE OR REPLACE VIEW a AS SELECT 1 AS temporary", commitsImplicitly | leavesState},
		{"SET @x = 1, PASSWORD = ''", commitsImplicitly | leavesState}, // MariaDB
		{"ALTER TABLE a ADD c INT", commitsImplicitly | leavesState},
		{"DROP TABLE a", commitsImplicitly | leavesState},
		{"TRUNCATE t", commitsImplicitly | leavesState},
		{"LOCK TABLES t WRITE", commitsImplicitly | leavesState},
		{"UNLOCK TABLES", commitsImplicitly | leavesState},
		{"GRANT ALL ON *.* TO x", commitsImplicitly | leavesState},
		{"START SLAVE", commitsImplicitly | leavesState},
		{"/*! SET @x = 1 */", commitsImplicitly | leavesState},
		{"FROBNICATE", commitsImplicitly | leavesState},
	} {
		if got := scan(tt.query); got != tt.want {
			t.Errorf("%q: %b, want %b", tt.query, got, tt.want)
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
		if got := severalStatements(query); got != want {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
}
