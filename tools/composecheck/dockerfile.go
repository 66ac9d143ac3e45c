package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
)

const dockerfileName = "services/Dockerfile"

// image is what the stages of the Dockerfile hold.
type image struct {
	order  []string
	stages map[string]instructions.Stage
	folded *parser.Result
}

func readImage(content []byte) (*image, error) {
	parsed, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, err
	}
	i := &image{stages: map[string]instructions.Stage{}, folded: parsed}
	for _, stage := range stages {
		i.order = append(i.order, stage.Name)
		i.stages[stage.Name] = stage
	}
	return i, nil
}

// has says whether a stage holds a program: one that it copies from a stage whose `go build -o` makes it.
func (i *image) has(name, program string) bool {
	stage, is := i.stages[name]
	if !is {
		return false
	}
	for _, command := range stage.Commands {
		copied, is := command.(*instructions.CopyCommand)
		if !is || copied.From == "" {
			continue
		}
		for _, source := range copied.SourcePaths {
			for _, built := range i.built(copied.From) {
				at := copied.DestPath
				switch {
				case strings.HasSuffix(source, "/") && strings.HasPrefix(built, source):
					at = path.Join(at, strings.TrimPrefix(built, source))
				case built != source:
					continue
				case strings.HasSuffix(at, "/"):
					at = path.Join(at, path.Base(built))
				}
				if at == program {
					return true
				}
			}
		}
	}
	return i.has(stage.BaseName, program)
}

// built are the programs that a stage's `go build -o` makes.
func (i *image) built(name string) (programs []string) {
	for _, command := range i.stages[name].Commands {
		run, is := command.(*instructions.RunCommand)
		if !is {
			continue
		}
		words := strings.Fields(strings.Join(run.CmdLine, " "))
		out := slices.Index(words, "-o")
		if !slices.Contains(words, "build") || out < 0 || out+1 >= len(words) {
			continue
		}
		at := words[out+1]
		if !strings.HasSuffix(at, "/") {
			programs = append(programs, at)
			continue
		}
		for _, word := range words[out+2:] {
			programs = append(programs, at+path.Base(word))
		}
	}
	return programs
}

// ports are those that a stage's EXPOSE names.
func (i *image) ports(name string) (all []int) {
	for _, command := range i.stages[name].Commands {
		if expose, is := command.(*instructions.ExposeCommand); is {
			for _, port := range expose.Ports {
				n, _ := strconv.Atoi(port)
				all = append(all, n)
			}
		}
	}
	return all
}

// lintDockerfile is BuildKit's own linter, and what it does not know of.
func (t *tree) lintDockerfile(ctx context.Context) (problems []string) {
	say := func(format string, args ...any) {
		problems = append(problems, dockerfileName+": "+fmt.Sprintf(format, args...))
	}
	source := llb.NewSourceMap(nil, dockerfileName, "Dockerfile", t.dockerfile)
	source.Definition = &llb.Definition{}
	results, err := dockerfile2llb.DockerfileLint(ctx, t.dockerfile, dockerfile2llb.ConvertOpt{
		MetaResolver: offline{}, SourceMap: source,
	})
	switch {
	case err != nil:
		say("%v", err)
	case results.Error != nil:
		say("%s", results.Error.Message)
	default:
		for _, warning := range results.Warnings {
			line := int32(0)
			if warning.Location != nil && len(warning.Location.Ranges) > 0 {
				line = warning.Location.Ranges[0].Start.Line
			}
			say("line %d: %s: %s", line, warning.RuleName, warning.Detail)
		}
	}
	ignored, err := ignorefile.ReadAll(bytes.NewReader(t.ignore))
	if err != nil {
		say(".dockerignore: %v", err)
	}
	matcher, err := patternmatcher.New(ignored)
	if err != nil {
		say(".dockerignore: %v", err)
		return problems
	}
	if secret, err := matcher.MatchesOrParentMatches(".compose/redis_conf"); err != nil || !secret {
		say("the secrets below .compose are sent to the builder")
	}
	for _, name := range t.image.order {
		stage := t.image.stages[name]
		_, ours := t.image.stages[stage.BaseName]
		if !ours && stage.BaseName != "scratch" && !versioned.MatchString(stage.BaseName) {
			say("stage %s: its base %s has no version", name, stage.BaseName)
		}
		for _, command := range stage.Commands {
			switch command := command.(type) {
			case *instructions.AddCommand:
				say("stage %s: ADD: COPY does all that is needed here, and fetches nothing", name)
			case *instructions.CopyCommand:
				if command.From != "" {
					if _, is := t.image.stages[command.From]; !is {
						say("stage %s: there is no stage %s to copy from", name, command.From)
					}
					continue
				}
				for _, source := range command.SourcePaths {
					if _, err := os.Stat(filepath.Join(t.root, source)); err != nil {
						say("stage %s: %v", name, err)
					}
					if out, err := matcher.MatchesOrParentMatches(source); err != nil || out {
						say("stage %s: .dockerignore keeps %s out", name, source)
					}
				}
			}
		}
	}
	for _, s := range t.project.Services {
		if s.Build == nil || t.image.stages[s.Build.Target].Name == "" {
			continue
		}
		if user := t.image.user(s.Build.Target); user != ourUser {
			say("stage %s runs as %q, not %s", s.Build.Target, user, ourUser)
		}
	}
	slices.Sort(problems)
	return slices.Compact(problems)
}

// user is whom a stage runs as.
func (i *image) user(name string) (user string) {
	stage, is := i.stages[name]
	if !is {
		return ""
	}
	user = i.user(stage.BaseName)
	for _, command := range stage.Commands {
		if set, is := command.(*instructions.UserCommand); is {
			user = set.User
		}
	}
	return user
}

// offline stands for a registry: what the linter wants to know of a base image is that there is one.
type offline struct{}

func (offline) ResolveImageConfig(
	_ context.Context, ref string, _ sourceresolver.Opt,
) (string, digest.Digest, []byte, error) {
	return ref, "", []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers"}}`), nil
}
