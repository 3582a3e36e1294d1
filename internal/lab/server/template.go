package server

// This file makes data directories: one template for each version of a server, with the users
// baked in, and copies of it. Running a server on one is server.go's part.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// The accounts of every private server, beside root without a password on the socket.
const (
	User, Password       = "livepool", "secret-pw" // may do everything except write to a read-only server
	AppUser, AppPassword = "app", "app-pw"         // an ordinary user with rights on Database only
	Database             = "test"

	replUser, replPassword = "repl", "repl-pw" // by which a replica reads from its primary
)

// Each statement is on a line of its own, as bootstrapping wants it.
const usersSQL = `CREATE DATABASE ` + Database + `;
CREATE USER '` + User + `'@'%' IDENTIFIED BY '` + Password + `';
GRANT ALL PRIVILEGES ON *.* TO '` + User + `'@'%' WITH GRANT OPTION;
CREATE USER '` + AppUser + `'@'%' IDENTIFIED BY '` + AppPassword + `';
GRANT ALL PRIVILEGES ON ` + Database + `.* TO '` + AppUser + `'@'%';
CREATE USER '` + replUser + `'@'%' IDENTIFIED BY '` + replPassword + `';
GRANT REPLICATION SLAVE ON *.* TO '` + replUser + `'@'%';
`

// MariaDB lets the holder of this privilege write to a read-only server, MySQL (with
// super_read_only) nobody. Without it, one test of a failover fits both.
const mariadbUsersSQL = usersSQL + `REVOKE READ_ONLY ADMIN ON *.* FROM '` + User + `'@'%';
`

// Options that make a server quick and small and yet lose nothing that it has acknowledged
// when it is killed: the log is written at every commit (but not synced, which only a crash
// of the machine would show), and the doublewrite buffer stays on.
var (
	commonArgs = []string{
		"--bind-address=127.0.0.1",
		"--skip-log-bin",
		"--skip-name-resolve",
		"--performance-schema=OFF",
		"--max-connections=200",
		"--table-open-cache=64",
		"--key-buffer-size=1M",
		"--innodb-buffer-pool-size=16M",
		"--innodb-flush-log-at-trx-commit=2",
		"--innodb-buffer-pool-dump-at-shutdown=0",
		"--innodb-buffer-pool-load-at-startup=0",
		"--innodb-autoextend-increment=1",
	}
	mariadbArgs = []string{
		"--innodb-log-file-size=8M",
		"--innodb-flush-method=nosync",
		"--innodb-undo-tablespaces=0", // those three of 11.8 are 10 MB each, and slow to stop
		"--aria-pagecache-buffer-size=8M",
	}
	mysqlArgs = []string{
		"--innodb-redo-log-capacity=8M",
		"--innodb-data-file-path=ibdata1:5M:autoextend",
		"--innodb-undo-log-truncate=OFF",
		"--innodb-use-native-aio=0",
		"--loose-mysqlx=OFF",
		"--secure-file-priv=NULL",
	}
)

// quickArgs are the options that every server of that kind runs with.
func (in *Install) quickArgs() []string {
	if in.Kind == MySQL {
		return append(commonArgs[:len(commonArgs):len(commonArgs)], mysqlArgs...)
	}
	return append(commonArgs[:len(commonArgs):len(commonArgs)], mariadbArgs...)
}

// template returns a data directory to copy, made once for each version of the server and of
// what we put into it.
func (in *Install) template(ctx context.Context) (string, error) {
	ours := sha256.Sum256([]byte(mariadbUsersSQL + strings.Join(in.quickArgs(), " ")))
	name := fmt.Sprintf("template-%s-%s-%s-%x", in.Kind, in.Version, runtime.GOARCH, ours[:4])
	return Cached(ctx, name, func(dir string) error {
		fmt.Fprintf(Progress, "making a data directory for %s %s, once ...\n", in.Kind, in.Version)
		if in.Kind == MySQL {
			return in.initializeMySQL(ctx, dir)
		}
		return in.bootstrapMariaDB(ctx, dir)
	})
}

// bootstrapMariaDB does what mariadb-install-db does, without the programs that this needs.
func (in *Install) bootstrapMariaDB(ctx context.Context, dir string) error {
	var sql bytes.Buffer
	sql.WriteString("CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n")
	for _, name := range []string{"system_tables", "performance_tables", "system_tables_data", "maria_add_gis_sp_bootstrap"} {
		text, err := in.sqlFile(name)
		if err != nil {
			return err
		}
		sql.Write(text)
	}
	sql.WriteString("FLUSH PRIVILEGES;\nDROP USER IF EXISTS ''@'localhost';\n" + mariadbUsersSQL)
	return in.once(ctx, dir, &sql, "--bootstrap", "--enforce-storage-engine=",
		"--max-allowed-packet=8M", "--net-buffer-length=16K")
}

// sqlFile reads one of MariaDB's SQL files, whose names have a prefix that depends on the version.
func (in *Install) sqlFile(name string) ([]byte, error) {
	var errs []error
	for _, prefix := range []string{"mariadb_", "mysql_", ""} {
		text, err := os.ReadFile(filepath.Join(in.share, prefix+name+".sql"))
		if err == nil {
			return text, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (in *Install) initializeMySQL(ctx context.Context, dir string) error {
	init := filepath.Join(filepath.Dir(dir), "init.sql")
	if err := os.WriteFile(init, []byte(usersSQL), 0o644); err != nil {
		return err
	}
	if err := in.once(ctx, dir, nil, "--initialize-insecure", "--init-file="+init); err != nil {
		return err
	}
	// Every copy shall have its own identity, and makes its temporary tablespaces anew.
	for _, name := range []string{"auto.cnf", "#innodb_temp", "ibtmp1"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// once runs the server program on a data directory for a job that ends by itself.
func (in *Install) once(ctx context.Context, dir string, stdin io.Reader, args ...string) error {
	log, err := os.Create(filepath.Join(filepath.Dir(dir), "init.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	argv := in.command(append(append(in.quickArgs(), "--datadir="+dir), args...)...)
	p, err := startProcess(argv, stdin, log)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		return ctx.Err()
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", args[0], p.err, tail(log.Name()))
	}
	return nil
}

// copyTree copies a data directory. Blocks of zeros become holes: much of a young data
// directory is room to grow.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if e.IsDir() {
			return os.Mkdir(target, info.Mode().Perm()|0o700)
		}
		return copyFile(path, target, info)
	})
}

var zeros [64 << 10]byte

func copyFile(from, to string, info fs.FileInfo) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	var buf [len(zeros)]byte
	for at := int64(0); ; {
		n, err := io.ReadFull(in, buf[:])
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
