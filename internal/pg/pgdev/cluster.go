package pgdev

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// dataVersion is the major version that made the data, "" when there is none yet.
func (s *Server) dataVersion() string {
	version, err := os.ReadFile(filepath.Join(s.Data(), "PG_VERSION"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(version))
}

// initialise makes a cluster in a directory beside the final one and renames it,
// so that a half-made cluster is never mistaken for a whole one. It removes
// nothing that could be somebody's data.
func (s *Server) initialise(ctx context.Context) error {
	if version := s.dataVersion(); version != "" {
		return s.checkVersion(ctx, version)
	}
	if err := os.Remove(s.Data()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is no Postgres data directory and not an empty one; choose another --data directory or remove it", s.Data())
	}
	if halves, err := filepath.Glob(s.Data() + ".new-*"); err == nil {
		for _, half := range halves {
			_ = os.RemoveAll(half) // of an initdb that was interrupted; ours has a new name
		}
	}
	half := s.Data() + ".new-" + rand.Text()
	if err := s.user.makePrivate(half); err != nil {
		return err
	}
	if err := s.fill(ctx, half); err != nil {
		_ = os.RemoveAll(half)
		return err
	}
	if err := os.Rename(half, s.Data()); err != nil {
		return fmt.Errorf("put the new data directory in its place: %w", err)
	}
	return syncDir(s.options.Dir)
}

// fill makes a new cluster in dir, out of the cache when there is one.
func (s *Server) fill(ctx context.Context, dir string) error {
	if s.options.Cache == "" {
		return s.initdb(ctx, dir)
	}
	version, err := s.version(ctx)
	if err != nil {
		return err
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(version))
	cached := filepath.Join(s.options.Cache, fmt.Sprintf("tallystick-cluster-%d-%x", s.user.uid, h.Sum64()))
	if o, ok := ownerOf(filepath.Join(cached, "PG_VERSION")); ok && o.uid == s.user.uid {
		return s.copyCluster(ctx, cached, dir)
	}
	if err := s.initdb(ctx, dir); err != nil {
		return err
	}
	half := cached + ".new-" + rand.Text()
	if err := s.user.makePrivate(half); err != nil {
		return err
	}
	if err := s.copyCluster(ctx, dir, half); err != nil {
		_ = os.RemoveAll(half)
		return err
	}
	if err := os.Rename(half, cached); err != nil {
		_ = os.RemoveAll(half) // another process was faster, and its copy is as good
	}
	return nil
}

func (s *Server) initdb(ctx context.Context, dir string) error {
	args := []string{"-D", dir, "-U", User, "-A", "trust", "-E", "UTF8", "--locale=C", "--data-checksums"}
	if s.options.Volatile {
		args = append(args, "--no-sync")
	}
	if out, err := s.run(ctx, filepath.Join(s.bin, "initdb"), args...); err != nil {
		return fmt.Errorf("initdb in %s: %w: %s", dir, err, lastLine(out))
	}
	return nil
}

func (s *Server) copyCluster(ctx context.Context, from, to string) error {
	if out, err := s.run(ctx, "/bin/cp", "-a", from+"/.", to); err != nil {
		return fmt.Errorf("copy the cluster in %s: %w: %s", from, err, lastLine(out))
	}
	return nil
}

// version is what the server binary says of itself: postgres (PostgreSQL) 15.18 (Debian …).
func (s *Server) version(ctx context.Context) (string, error) {
	out, err := s.run(ctx, filepath.Join(s.bin, "postgres"), "--version")
	if err != nil {
		return "", fmt.Errorf("ask the server in %s for its version: %w", s.bin, err)
	}
	return strings.TrimSpace(out), nil
}

func (s *Server) checkVersion(ctx context.Context, data string) error {
	out, err := s.version(ctx)
	if err != nil {
		return err
	}
	fields := strings.Fields(out)
	if len(fields) < 3 || !strings.HasPrefix(fields[2]+".", data+".") {
		return fmt.Errorf("%s was made by Postgres %s, but the server found in %s is %s; install Postgres %s (Debian: apt-get install postgresql-%s) or choose another --data directory",
			s.Data(), data, s.bin, out, data, data)
	}
	return nil
}

// createDatabase makes our database where it is missing: in a new cluster, or in
// one whose first start was interrupted. It uses psql, so that this package
// needs no driver.
func (s *Server) createDatabase(ctx context.Context) error {
	out, err := s.psql(ctx, "-tAc", "SELECT 1 FROM pg_database WHERE datname = '"+Database+"'")
	if err != nil {
		return fmt.Errorf("ask the private Postgres for its databases: %w: %s", err, lastLine(out))
	}
	if strings.TrimSpace(out) == "1" {
		return nil
	}
	out, err = s.psql(ctx, "-c", "CREATE DATABASE "+Database)
	if err != nil {
		return fmt.Errorf("create the database: %w: %s", err, lastLine(out))
	}
	return nil
}

func (s *Server) psql(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, filepath.Join(s.bin, "psql"),
		append([]string{"-X", "-h", s.socket, "-U", User, "-d", "postgres", "-v", "ON_ERROR_STOP=1"}, args...)...)
}

// run executes a tool as the server's user and returns what it printed. The tool
// dies with us: an initdb that outlived us would write into a directory that the
// next start removes.
func (s *Server) run(ctx context.Context, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, tool, args...) //nolint:gosec // tools of Postgres and cp, by absolute path
	cmd.Dir = "/"
	cmd.Env = s.environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user.credential(), Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runtime.LockOSThread() // Pdeathsig fires when the thread that forked ends
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	return out.String(), err
}

// syncDir makes a rename in dir survive a loss of power: the server's commits
// would be worth nothing under a name that comes back without them.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}
