// An apk client for the tests: installs packages into a folder, and makes signed repositories.
//
//	apk keygen KEY                     an RSA key pair: KEY and KEY.pub
//	apk index KEY INDEX FILE.apk...    APKINDEX.tar.gz of these packages, signed
//	apk install [flags] PACKAGE...     into -root, from -repo, trusting -key
package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/chainguard-dev/go-apk/pkg/apk"
	"github.com/chainguard-dev/go-apk/pkg/fs"
	"github.com/chainguard-dev/go-apk/pkg/signature"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "apk:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "keygen":
		return keygen(args[1])
	case len(args) > 3 && args[0] == "index":
		return index(ctx, args[1], args[2], args[3:])
	case len(args) > 1 && args[0] == "install":
		return install(ctx, args[1:])
	}
	return errors.New("usage: apk keygen KEY | index KEY INDEX FILE... | install -root D -key F -repo URL PACKAGE...")
}

func keygen(file string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(file, private, 0o600); err != nil {
		return err
	}
	return os.WriteFile(file+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644)
}

func index(ctx context.Context, key, file string, packages []string) error {
	var list apk.APKIndex
	list.Description = "packages for tests"
	for _, name := range packages {
		in, err := os.Open(name)
		if err != nil {
			return err
		}
		pkg, err := apk.ParsePackage(ctx, in)
		in.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		list.Packages = append(list.Packages, pkg)
	}
	archive, err := apk.ArchiveFromIndex(&list)
	if err != nil {
		return err
	}
	bytes, err := io.ReadAll(archive)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, bytes, 0o644); err != nil {
		return err
	}
	return signature.SignIndex(ctx, key, file)
}

func install(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("install", flag.ExitOnError)
	root := flags.String("root", "", "where to install to")
	key := flags.String("key", "", "the public key to trust")
	arch := flags.String("arch", "x86_64", "the architecture")
	repo := flags.String("repo", "", "the URL of the repository, without the architecture")
	cache := flags.String("cache", "", "a folder for what is downloaded; none without it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	options := []apk.Option{
		apk.WithFS(fs.DirFS(*root)), apk.WithArch(*arch), apk.WithIgnoreMknodErrors(true),
	}
	if *cache != "" {
		options = append(options, apk.WithCache(*cache, false))
	}
	client, err := apk.New(options...)
	if err != nil {
		return err
	}
	if err := client.InitDB(ctx); err != nil {
		return err
	}
	if err := client.InitKeyring(ctx, []string{*key}, nil); err != nil {
		return err
	}
	if err := client.SetRepositories(ctx, []string{*repo}); err != nil {
		return err
	}
	if err := client.SetWorld(ctx, flags.Args()); err != nil {
		return err
	}
	if err := client.FixateWorld(ctx, nil); err != nil {
		return err
	}
	installed, err := client.GetInstalled()
	if err != nil {
		return err
	}
	for _, pkg := range installed {
		fmt.Println("installed", pkg.Name, pkg.Version)
	}
	return nil
}
