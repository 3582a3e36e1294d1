// Package peers runs pools of other languages beside livepool: HikariCP (Java) and SQLAlchemy (Python). It fetches them
// and starts them; what they are told to do, and what is made of their answers, is package compare's.
//
// A machine needs Linux, Debian with apt-get and dpkg-deb, and a network at the first run; no Python, no Java, no root. The
// packages are unpacked into the cache as the database servers are, and run by their own libc. Nothing is installed.
// Python is a download of 22 MB, and 71 MB unpacked; Java 144 MB, and 255 MB.
//
// The driver below SQLAlchemy is PyMySQL: most programs have it, for it needs no compiler, and python3-cryptography is what it
// wants for MySQL's passwords. Debian's HikariCP is 2.7.9, of 2018; the peer tells its version, so that a report can.
package peers

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/livepool/livepool/internal/lab/server"
)

// A Peer is a pool of another language, in a process that reads orders and writes answers.
type Peer struct {
	Name string
	// Command is the process, not yet started. Its Env is set: what is added goes to its end.
	Command func(args ...string) *exec.Cmd
}

var (
	python = server.Packages{Name: "python", Suite: "trixie", Size: "22 MB",
		Names: "python3-sqlalchemy python3-pymysql python3-cryptography"}
	java = server.Packages{Name: "openjdk", Suite: "sid", Size: "144 MB",
		Names: "openjdk-21-jdk-headless libhikaricp-java libmariadb-java libslf4j-java"}
)

//go:embed sqlalchemy.py
var pythonSource string

//go:embed Hikari.java
var javaSource []byte

// All returns the peers that can be had, and why the others cannot. What takes long is told to progress.
func All(ctx context.Context, progress io.Writer) ([]Peer, error) {
	server.Progress = progress
	var peers []Peer
	sqlalchemy, pythonErr := sqlAlchemy(ctx)
	if pythonErr == nil {
		peers = append(peers, Peer{"SQLAlchemy", sqlalchemy}, Peer{"SQLAlchemy, pre-ping", func(args ...string) *exec.Cmd {
			return sqlalchemy(append([]string{"--pre-ping"}, args...)...)
		}})
	} else {
		pythonErr = fmt.Errorf("SQLAlchemy and SQLAlchemy, pre-ping are left out: %w", pythonErr)
	}
	hikari, javaErr := hikariCP(ctx)
	if javaErr == nil {
		peers = append(peers, Peer{"HikariCP", hikari})
	} else {
		javaErr = fmt.Errorf("HikariCP is left out: %w", javaErr)
	}
	return peers, errors.Join(pythonErr, javaErr)
}

func sqlAlchemy(ctx context.Context) (func(...string) *exec.Cmd, error) {
	tree, err := server.FetchPrograms(ctx, python)
	if err != nil {
		return nil, err
	}
	return func(args ...string) *exec.Cmd {
		// -P: modules are not looked for in the working directory.
		cmd := tree.Command("usr/bin/python3", append([]string{"-P", "-c", pythonSource}, args...)...)
		cmd.Env = append(cmd.Env, "PYTHONHOME="+filepath.Join(tree.Root, "usr"),
			"PYTHONPATH="+filepath.Join(tree.Root, "usr/lib/python3/dist-packages"), "PYTHONNOUSERSITE=1",
			"CRYPTOGRAPHY_OPENSSL_NO_LEGACY=1") // or it wants a file of the machine's OpenSSL, and nothing in it is used
		return cmd
	}, nil
}

func hikariCP(ctx context.Context) (func(...string) *exec.Cmd, error) {
	tree, err := server.FetchPrograms(ctx, java)
	if err != nil {
		return nil, err
	}
	homes, _ := filepath.Glob(filepath.Join(tree.Root, "usr/lib/jvm/java-*-openjdk-*/bin"))
	if len(homes) == 0 {
		return nil, fmt.Errorf("%w: %s holds no Java: remove it", server.ErrUnavailable, tree.Root)
	}
	program, err := filepath.Rel(tree.Root, filepath.Join(homes[0], "java"))
	if err != nil {
		return nil, err
	}
	jars := ""
	for _, jar := range []string{"HikariCP", "mariadb-java-client", "slf4j-api", "slf4j-nop"} {
		jars += filepath.Join(tree.Root, "usr/share/java", jar+".jar") + ":"
	}
	ours := sha256.Sum256(javaSource)
	classes, err := server.Cached(ctx, fmt.Sprintf("hikari-%x", ours[:4]), func(dir string) error {
		source := filepath.Join(filepath.Dir(dir), "Hikari.java")
		if err := os.WriteFile(source, javaSource, 0o644); err != nil {
			return err
		}
		out, err := tree.Command(program, "-m", "jdk.compiler/com.sun.tools.javac.Main", "-cp", jars, "-d", dir, source).CombinedOutput()
		if err != nil {
			return fmt.Errorf("javac: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return func(args ...string) *exec.Cmd {
		return tree.Command(program, append([]string{"-cp", jars + classes, "Hikari"}, args...)...)
	}, nil
}
