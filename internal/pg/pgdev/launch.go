package pgdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// logBytesMax is the size from which a start begins a new log; one old log is kept.
const logBytesMax = 8 << 20

// launch starts the postmaster and waits until it is ready. A server that does
// not become so is ended.
func (s *Server) launch(ctx context.Context, lock *dirLock) error {
	if err := s.spawn(lock); err != nil {
		lock.release()
		return err
	}
	err := s.awaitReady(ctx)
	if err == nil {
		err = s.createDatabase(ctx)
	}
	if err == nil {
		return nil
	}
	hurry, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cancel() // nothing in it is worth saving
	return errors.Join(err, s.Stop(hurry))
}

// spawn starts the postmaster. The lock is released when the postmaster ends.
func (s *Server) spawn(lock *dirLock) error {
	logFile, err := s.openLog()
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), s.settings()...) //nolint:gosec,noctx // our own tool; the server outlives the context of its start
	cmd.Dir = "/"
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
			lock.release()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd, s.done = cmd, done
	return nil
}

func (s *Server) settings() []string {
	settings := []string{
		"listen_addresses=", "unix_socket_directories=" + s.socket, "unix_socket_permissions=0700",
		"timezone=UTC", "log_timezone=UTC", "max_connections=200", "shared_buffers=" + s.buffers(),
		"max_wal_size=2GB", "wal_compression=on", "logging_collector=off", "log_min_messages=warning", "log_checkpoints=off",
	}
	if s.options.Volatile {
		settings = append(settings, "fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum_naptime=10s", "max_wal_size=256MB")
	}
	args := []string{"-D", s.Data()}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	return args
}

// Bounds of the buffers, in bytes.
const (
	buffersLeast = 128 << 20
	buffersMost  = 1 << 30
)

// buffers is a quarter of the machine's memory, as Postgres itself recommends, within
// bounds: the index that guards every charge is written all over, and has to fit. It
// is memory only once it is used. Tests, of which many servers run, get the least.
func (s *Server) buffers() string {
	size := int64(buffersLeast)
	if !s.options.Volatile {
		size = min(max(memory()/4, buffersLeast), buffersMost)
	}
	return strconv.FormatInt(size>>20, 10) + "MB"
}

// memory is how much the machine has, 0 where it does not say.
func memory() int64 {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		if text, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kilobytes, _ := strconv.ParseInt(strings.Fields(text)[0], 10, 64) // the kernel writes digits
			return kilobytes << 10
		}
	}
	return 0
}

// awaitReady watches postmaster.pid, whose eighth line is "ready" once
// connections are accepted; it costs no connection and no log line.
func (s *Server) awaitReady(ctx context.Context) error {
	pid, done := s.PID(), s.Done()
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
			return fmt.Errorf("wait for the Postgres server in %s to become ready: %w: %s (more in %s)", s.options.Dir, ctx.Err(), s.logTail(), s.logPath())
		case <-tick.C:
		}
	}
}

// environ is all that the server and its tools see of our environment: a PGPORT
// or PGSERVICE of the user's would lead them elsewhere, and secrets are not theirs.
func (s *Server) environ() []string {
	return []string{"PATH=" + s.bin + ":/usr/bin:/bin", "HOME=" + s.options.Dir, "LC_ALL=C", "TZ=UTC", "PGPORT=5432"}
}

func (s *Server) logPath() string { return filepath.Join(s.options.Dir, "postgres.log") }

func (s *Server) openLog() (*os.File, error) {
	if info, err := os.Stat(s.logPath()); err == nil && info.Size() > logBytesMax {
		if err := os.Rename(s.logPath(), s.logPath()+".old"); err != nil {
			return nil, fmt.Errorf("put the server's old log aside: %w", err)
		}
	}
	f, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	if err := s.user.give(s.logPath()); err != nil {
		_ = f.Close()
		return nil, err
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
