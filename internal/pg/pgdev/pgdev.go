// Package pgdev runs a private Postgres server out of the binaries that the
// machine has: own data directory, reachable only through a unix socket, ended
// with the process that started it, and recovered when that process was killed.
//
// Postgres refuses to run as root. When we are root the server runs as the
// ordinary user who owns the directory, and where that is root too, as
// "postgres" (else "nobody").
package pgdev

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// User is the owner of everything in a private server; Database is created at first start.
const (
	User     = "tallystick"
	Database = "tallystick"
)

const (
	// startMax bounds how long a server may take to become ready, crash recovery included.
	startMax = 60 * time.Second
	// quitMax bounds how long a server may take to end without saving anything.
	quitMax = 10 * time.Second
	// poll is how often files are looked at that no event announces.
	poll = 20 * time.Millisecond
)

// Options say where and how a server runs.
type Options struct {
	Dir      string // holds data, socket and log; made when missing
	Bin      string // directory of the server binaries; "" looks for them
	Volatile bool   // no fsync: for tests, whose data may die with the machine
	Cache    string // directory that keeps an initialised cluster to copy, which is ten times faster than initdb: for tests; "" has none
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
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the data directory: %w", err)
	}
	o.Dir = dir
	s := &Server{options: o}
	s.user, err = serverUser(s.Data(), dir)
	if err != nil {
		return nil, err
	}
	if err := s.begin(ctx); err != nil {
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

// Stop ends the server: sessions are rolled back, data is written out. When ctx
// ends first, the server is ended without that, which costs nothing but a
// recovery at the next start. Stopping a server that has ended is harmless.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	process, done := s.cmd.Process, s.done
	s.mu.Unlock()
	if err := signal(process, syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	if err := signal(process, syscall.SIGQUIT); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-time.After(quitMax):
		return s.Kill()
	}
}

func signal(process *os.Process, number syscall.Signal) error {
	if err := process.Signal(number); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal Postgres: %w", err)
	}
	return nil
}

// Kill ends the server and all its children at once, as a crash of the machine's
// memory would, for tests of recovery. Start it again with Restart.
func (s *Server) Kill() error {
	s.mu.Lock()
	process, done := s.cmd.Process, s.done
	s.mu.Unlock()
	select {
	case <-done: // its process id may be somebody else's by now
	default:
		killTree(process.Pid)
		<-done
	}
	return s.endOrphans()
}

// Restart starts the server again on the same data after Stop or Kill.
func (s *Server) Restart(ctx context.Context) error { return s.begin(ctx) }

// Done is closed when the server has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// begin prepares the directory and launches the server. The lock on the
// directory passes to the running server, and is let go on every other way out.
func (s *Server) begin(ctx context.Context) error {
	if err := s.user.makeHome(s.options.Dir); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(s.options.Dir)
	if err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	s.options.Dir = dir // as the kernel names it, by which the server's processes are recognised
	if err := s.user.canReach(dir); err != nil {
		return err
	}
	lock, err := takeLock(s.options.Dir, s.user)
	if err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		lock.release()
		return err
	}
	return s.launch(ctx, lock)
}

// prepare makes all that a server needs: its binaries, a directory for the
// socket, no other server on the data, and an initialised cluster.
func (s *Server) prepare(ctx context.Context) error {
	bin, err := binariesFor(s.options.Bin, s.dataVersion())
	if err != nil {
		return err
	}
	s.bin = bin
	s.socket, err = s.socketDir()
	if err != nil {
		return err
	}
	if err := s.evict(); err != nil {
		return err
	}
	return s.initialise(ctx)
}
