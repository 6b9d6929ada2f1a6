// Package pgdev runs a private Postgres server out of the binaries that the
// machine has: own data directory, reachable only through a unix socket, ended
// with the process that started it, and recovered when that process was killed.
//
// Postgres refuses to run as root. When we are root the server runs as the
// ordinary user "postgres" (else "nobody"), who owns the data directory.
package pgdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// User is the owner of everything in a private server; Database is created at first start.
const (
	User     = "tallystick"
	Database = "tallystick"
)

// startMax bounds how long a server may take to become ready, crash recovery included.
const startMax = 60 * time.Second

// poll is how often files are looked at that no event announces.
const poll = 20 * time.Millisecond

// Options say where and how a server runs.
type Options struct {
	Dir      string // holds data, socket and log; made when missing
	Bin      string // directory of the server binaries; "" looks for them
	Volatile bool   // no fsync: for tests, whose data may die with the machine
}

// Server is a running private server.
type Server struct {
	options Options
	bin     string
	user    *owner
	socket  string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when the postmaster has ended
}

// Start finds the binaries, makes or recovers the data directory, and returns
// when the server accepts connections. Its errors say what to do next.
func Start(ctx context.Context, o Options) (*Server, error) {
	bin, err := FindBinaries(o.Bin)
	if err != nil {
		return nil, err
	}
	user, err := serverUser()
	if err != nil {
		return nil, err
	}
	o.Dir, err = filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the data directory: %w", err)
	}
	s := &Server{options: o, bin: bin, user: user}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	if err := s.launch(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// DSN is the address of a database in this server, for lib/pq and psql alike.
func (s *Server) DSN(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(User), Host: "", Path: "/" + database}
	u.RawQuery = url.Values{"host": {s.socket}, "sslmode": {"disable"}}.Encode()
	return u.String()
}

// Data is the server's data directory.
func (s *Server) Data() string { return filepath.Join(s.options.Dir, "data") }

// PID is the process id of the postmaster.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}

// Stop ends the server: sessions are rolled back, data is written out. Stopping
// a server that has ended is harmless.
func (s *Server) Stop(ctx context.Context) error { return s.end(ctx, syscall.SIGINT) }

// Kill ends the server and all its children at once, as a crash of the machine's
// memory would, for tests of recovery. Start it again with Restart.
func (s *Server) Kill() error {
	s.mu.Lock()
	pid, done := s.cmd.Process.Pid, s.done
	s.mu.Unlock()
	// The postmaster leads its own process group, and its children stay in
	// theirs: collect them first, or they would be orphans that hold the data.
	children := childrenOf(pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for _, child := range children {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	<-done
	return s.awaitOrphans(context.Background(), pid)
}

// Restart starts the server again on the same data after Stop or Kill.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	return s.launch(ctx)
}

// Done is closed when the server has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

func (s *Server) end(ctx context.Context, signal syscall.Signal) error {
	s.mu.Lock()
	process, done := s.cmd.Process, s.done
	s.mu.Unlock()
	if err := process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal Postgres: %w", err)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for Postgres to stop: %w", ctx.Err())
	}
}

// prepare makes everything that a server needs on disk: directories of the
// right owner, an initialised cluster, and no other server on it.
func (s *Server) prepare(ctx context.Context) error {
	if err := s.user.makeDir(s.options.Dir, 0o755); err != nil {
		return err
	}
	if err := s.user.canReach(s.options.Dir); err != nil {
		return err
	}
	socket, err := s.socketDir()
	if err != nil {
		return err
	}
	s.socket = socket
	if err := s.evict(ctx); err != nil {
		return err
	}
	return s.initialise(ctx)
}

// initialise runs initdb into a directory beside the final one and renames it,
// so that a half-made cluster is never mistaken for a whole one.
func (s *Server) initialise(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(s.Data(), "PG_VERSION"))
	if err == nil {
		return s.checkVersion(ctx, strings.TrimSpace(string(version)))
	}
	if entries, err := os.ReadDir(s.Data()); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty and is no Postgres data directory; choose another --data directory or remove it", s.Data())
	}
	half := s.Data() + ".new"
	for _, dir := range []string{half, s.Data()} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear a half-made data directory: %w", err)
		}
	}
	args := []string{"-D", half, "-U", User, "-A", "trust", "-E", "UTF8", "--locale=C", "--data-checksums"}
	if s.options.Volatile {
		args = append(args, "--no-sync")
	}
	if out, err := s.run(ctx, "initdb", args...); err != nil {
		return fmt.Errorf("initdb in %s: %w: %s", half, err, lastLine(out))
	}
	return os.Rename(half, s.Data())
}

func (s *Server) checkVersion(ctx context.Context, data string) error {
	out, err := s.run(ctx, "postgres", "--version")
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", s.bin, err)
	}
	fields := strings.Fields(out) // postgres (PostgreSQL) 15.18 (Debian …)
	if len(fields) < 3 || strings.Split(fields[2], ".")[0] != data {
		return fmt.Errorf("%s was made by Postgres %s, but the server found in %s is %s; install Postgres %s (Debian: apt-get install postgresql-%s) or choose another --data directory",
			s.Data(), data, s.bin, strings.TrimSpace(out), data, data)
	}
	return nil
}

// launch starts the postmaster and waits until it is ready.
func (s *Server) launch(ctx context.Context) error {
	logFile, err := s.openLog()
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), s.settings()...) //nolint:noctx // the server outlives the context of its start
	cmd.Dir = s.options.Dir
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = s.environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user.credential(), Setpgid: true, Pdeathsig: syscall.SIGINT}
	done := make(chan struct{})
	started := make(chan error, 1)
	// Pdeathsig fires when the thread that forked ends, so that thread is kept
	// for as long as the server lives.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	if err := s.awaitReady(ctx, cmd.Process.Pid, done); err != nil {
		_ = s.end(context.WithoutCancel(ctx), syscall.SIGQUIT)
		return err
	}
	return s.createDatabase(ctx)
}

func (s *Server) settings() []string {
	settings := []string{
		"listen_addresses=", "unix_socket_directories=" + s.socket, "unix_socket_permissions=0777",
		"timezone=UTC", "log_timezone=UTC", "max_connections=200", "shared_buffers=128MB",
		"max_wal_size=2GB", "wal_compression=on", "logging_collector=off", "log_min_messages=warning", "log_checkpoints=off",
	}
	if s.options.Volatile {
		settings = append(settings, "fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum_naptime=10s")
	}
	args := []string{"-D", s.Data()}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	return args
}

// awaitReady watches postmaster.pid, whose eighth line is "ready" once
// connections are accepted; it costs no connection and no log line.
func (s *Server) awaitReady(ctx context.Context, pid int, done <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if p, ok := s.postmaster(); ok && p.pid == pid && p.ready {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("the Postgres server in %s ended at once: %s (more in %s)", s.options.Dir, s.logTail(), s.logPath())
		case <-ctx.Done():
			return fmt.Errorf("the Postgres server in %s is not ready after %v: %s (more in %s)", s.options.Dir, startMax, s.logTail(), s.logPath())
		case <-tick.C:
		}
	}
}

// createDatabase makes our database in a new cluster. The single-user tool is
// used so that this package needs no driver.
func (s *Server) createDatabase(ctx context.Context) error {
	out, err := s.run(ctx, "psql", "-X", "-h", s.socket, "-U", User, "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-tAc",
		"SELECT 1 FROM pg_database WHERE datname = '"+Database+"'")
	if err != nil {
		return fmt.Errorf("ask the private Postgres for its databases: %w: %s", err, lastLine(out))
	}
	if strings.TrimSpace(out) == "1" {
		return nil
	}
	out, err = s.run(ctx, "psql", "-X", "-h", s.socket, "-U", User, "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", "CREATE DATABASE "+Database)
	if err != nil {
		return fmt.Errorf("create the database: %w: %s", err, lastLine(out))
	}
	return nil
}

// run executes a Postgres tool as the server's user and returns what it printed.
func (s *Server) run(ctx context.Context, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, tool), args...) //nolint:gosec // our own tools, found by FindBinaries
	cmd.Dir = s.options.Dir
	cmd.Env = s.environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user.credential()}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// environ is all that the server and its tools see of our environment: a PGPORT
// or PGSERVICE of the user's would lead them elsewhere, and secrets are not theirs.
func (s *Server) environ() []string {
	return []string{"PATH=" + s.bin + ":/usr/bin:/bin", "HOME=" + s.options.Dir, "LC_ALL=C", "TZ=UTC", "PGPORT=5432"}
}

func (s *Server) logPath() string { return filepath.Join(s.options.Dir, "postgres.log") }

func (s *Server) openLog() (*os.File, error) {
	f, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	return f, nil
}

// logTail is the last line of the log that names an error, for a message.
func (s *Server) logTail() string {
	content, err := os.ReadFile(s.logPath())
	if err != nil {
		return "it left no log"
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	for i := len(lines) - 1; i >= max(0, len(lines)-20); i-- {
		if strings.Contains(lines[i], "FATAL") || strings.Contains(lines[i], "PANIC") || strings.Contains(lines[i], "ERROR") {
			return lines[i]
		}
	}
	return lines[len(lines)-1]
}

func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}
