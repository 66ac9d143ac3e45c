// Command image makes the archive of an image reproducible: image IN OUT TAG TIME SBOM.
//
// IN is what `docker save` writes. Every time in it becomes TIME, in seconds since 1970, so that the same sources give the
// same layers and the same configuration. A last layer has the bill of materials, SPDX 2.3, of the Go programs in the
// image; it is also written to the file SBOM. OUT is for `docker load`, which gives the image the name TAG.
package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/spdx/tools-golang/spdxlib"
)

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: image IN OUT TAG TIME SBOM")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(in, out, tagged, seconds, sbom string) error {
	since, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("TIME: %w", err)
	}
	created := time.Unix(since, 0).UTC()
	tag, err := name.NewTag(tagged)
	if err != nil {
		return err
	}
	image, err := tarball.ImageFromPath(in, nil)
	if err != nil {
		return fmt.Errorf("read %s: %w", in, err)
	}
	programs, err := programsOf(image)
	if err != nil {
		return fmt.Errorf("read the programs of %s: %w", in, err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	bill, err := encode(billOf(config.Config.Labels, programs, created))
	if err != nil {
		return fmt.Errorf("bill of materials: %w", err)
	}
	if err := os.WriteFile(sbom, bill, 0o644); err != nil {
		return err
	}
	layer, err := layerOf("usr/share/sbom/"+config.Config.Labels[title]+".spdx.json", bill)
	if err != nil {
		return err
	}
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{CreatedBy: "bill of materials", Created: v1.Time{Time: created}},
	})
	if err != nil {
		return err
	}
	if image, err = mutate.Time(image, created); err != nil {
		return err
	}
	return tarball.WriteToFile(out, tag, image)
}

const (
	title    = "org.opencontainers.image.title"
	version  = "org.opencontainers.image.version"
	revision = "org.opencontainers.image.revision"
	source   = "org.opencontainers.image.source"
)

// programsOf reads the build information of the Go programs in an image, by their paths.
func programsOf(image v1.Image) (map[string]*buildinfo.BuildInfo, error) {
	programs := map[string]*buildinfo.BuildInfo{}
	files := mutate.Extract(image)
	defer files.Close()
	for archive := tar.NewReader(files); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return programs, nil
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeReg || header.Mode&0o111 == 0 {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return nil, err
		}
		info, err := buildinfo.Read(bytes.NewReader(content))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", header.Name, err)
		}
		programs["/"+strings.TrimPrefix(header.Name, "/")] = info
	}
}

// billOf lists the image, its programs, and the modules that they are built of.
func billOf(labels map[string]string, programs map[string]*buildinfo.BuildInfo, created time.Time) *v2_3.Document {
	bill := &v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: labels[title],
		DocumentNamespace: labels[source] + "/sbom/" + labels[title] + "/" + labels[version] + "/" + labels[revision],
		CreationInfo: &v2_3.CreationInfo{
			Created:  created.Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "sluice-tools-image"}},
		},
	}
	relate := func(from, how, to string) {
		bill.Relationships = append(bill.Relationships, &v2_3.Relationship{
			RefA: common.MakeDocElementID("", from), Relationship: how, RefB: common.MakeDocElementID("", to),
		})
	}
	known := map[string]bool{}
	add := func(id, purpose, name, version, purl string) {
		if known[id] {
			return
		}
		known[id] = true
		item := &v2_3.Package{
			PackageSPDXIdentifier: common.ElementID(id), PackageName: name, PackageVersion: version,
			PrimaryPackagePurpose: purpose, PackageDownloadLocation: "NOASSERTION",
		}
		if purl != "" {
			item.PackageExternalReferences = []*v2_3.PackageExternalReference{
				{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl},
			}
		}
		bill.Packages = append(bill.Packages, item)
	}
	add("image", "CONTAINER", labels[title], labels[version], "")
	relate("DOCUMENT", common.TypeRelationshipDescribe, "image")
	for _, file := range slices.Sorted(maps.Keys(programs)) {
		info, program := programs[file], "program-"+path.Base(file)
		add(program, "APPLICATION", file, "", "")
		relate("image", common.TypeRelationshipContains, program)
		module := func(name, version string) {
			id := "module-" + identifier.Replace(name+"-"+version)
			add(id, "LIBRARY", name, version, "pkg:golang/"+name+"@"+version)
			relate(program, common.TypeRelationshipDependsOn, id)
		}
		module("stdlib", strings.TrimPrefix(info.GoVersion, "go"))
		for _, dependency := range info.Deps {
			if dependency.Replace != nil {
				dependency = dependency.Replace
			}
			if dependency.Version == "" {
				continue // a folder of this repository
			}
			module(dependency.Path, dependency.Version)
		}
	}
	return bill
}

// An identifier of SPDX has letters, digits, dots and dashes.
var identifier = strings.NewReplacer("/", "-", "_", "-", "~", "-", "+", "-", "!", "-")

func encode(bill *v2_3.Document) ([]byte, error) {
	if err := spdxlib.ValidateDocument(bill); err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err := json.Write(bill, &text, json.Indent(" "))
	return text.Bytes(), err
}

// layerOf returns a layer with one file that every account may read.
func layerOf(file string, content []byte) (v1.Layer, error) {
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	err := writer.WriteHeader(&tar.Header{Name: file, Mode: 0o444, Size: int64(len(content)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = writer.Write(content)
	}
	if err := errors.Join(err, writer.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive.Bytes())), nil
	})
}
