package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

// docker does outside of containers what scripts/compose.sh asks of docker. What it does not know is an error: the
// script may not come to rely on something that is nowhere proven.
//
// `up` asks whoever started the script, by the file DIR/up.asked, and goes on once there is DIR/up.done.
func (w world) docker(ctx context.Context, args []string) error {
	switch strings.Join(args, " ") {
	case "info", "compose version":
		return nil
	}
	if len(args) < 4 || !slices.Equal(args[:3], []string{"compose", "--file", composeFile}) {
		return fmt.Errorf("docker %q is not known here", args)
	}
	project, err := w.load(ctx, "tools")
	if err != nil {
		return err
	}
	switch command := args[3:]; {
	case slices.Equal(command, []string{"build"}):
		return nil
	case slices.Equal(command, []string{"up", "--detach", "--wait", "--remove-orphans"}):
		return w.await("up")
	case slices.Equal(command, []string{"--profile", "*", "down", "--volumes", "--remove-orphans"}):
		return w.await("down")
	case command[0] == "run":
		return w.run(project, command[1:])
	default:
		return fmt.Errorf("docker compose %q is not known here", command)
	}
}

// shim writes a program `docker` into a folder, which is this one's command docker in this world.
func (w world) shim(folder string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	file := filepath.Join(w.Dir, "world.json")
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' docker '%s' \"$@\"\n", self, file)
	return errors.Join(os.WriteFile(file, text, 0o600), os.WriteFile(filepath.Join(folder, "docker"), []byte(script), 0o755))
}

// await asks for something to be done and returns when it is.
func (w world) await(what string) error {
	asked, done := filepath.Join(w.Dir, what+".asked"), filepath.Join(w.Dir, what+".done")
	if err := os.WriteFile(asked, nil, 0o600); err != nil {
		return err
	}
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(done)
		if err == nil {
			return errors.Join(os.Remove(asked), os.Remove(done))
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: nobody has done it", what)
		}
	}
}

// run becomes the command of `docker compose run`.
func (w world) run(project *types.Project, args []string) error {
	var volumes []types.ServiceVolumeConfig
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		switch {
		case args[0] == "--rm", args[0] == "--no-TTY", args[0] == "--no-deps":
			args = args[1:]
		case args[0] == "--user" && len(args) > 1:
			args = args[2:] // it runs as whoever runs the script, which is what is asked for
		case args[0] == "--volume" && len(args) > 1:
			parts := strings.Split(args[1], ":")
			if len(parts) < 2 {
				return fmt.Errorf("--volume %s: want SOURCE:TARGET", args[1])
			}
			volumes = append(volumes, types.ServiceVolumeConfig{Type: types.VolumeTypeBind, Source: parts[0], Target: parts[1]})
			args = args[2:]
		default:
			return fmt.Errorf("docker compose run %s is not known here", args[0])
		}
	}
	if len(args) < 2 {
		return errors.New("docker compose run wants a service and arguments")
	}
	s, err := project.GetService(args[0])
	if err != nil {
		return err
	}
	s.Volumes = append(slices.Clone(s.Volumes), volumes...)
	moved, err := w.process(project, s, append(slices.Clone([]string(s.Entrypoint)), args[1:]...))
	if err != nil {
		return err
	}
	return syscall.Exec(moved.Args[0], moved.Args, moved.Env)
}
