import { createReadStream, createWriteStream, readdirSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { constants, createBrotliCompress, createGzip } from "node:zlib";
import { tanstackRouter } from "@tanstack/router-plugin/vite";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

/** Puts a compressed copy beside each text file: the server compresses nothing by itself. */
function compress(): Plugin {
  return {
    name: "compress",
    apply: "build",
    async closeBundle() {
      const dir = "dist/assets";
      const files = readdirSync(dir).filter((name) => /\.(js|css|svg)$/.test(name));
      await Promise.all(
        files.flatMap((name) => {
          const file = join(dir, name);
          const brotli = createBrotliCompress({ params: { [constants.BROTLI_PARAM_QUALITY]: 11 } });
          return [
            pipeline(createReadStream(file), brotli, createWriteStream(`${file}.br`)),
            pipeline(createReadStream(file), createGzip({ level: 9 }), createWriteStream(`${file}.gz`)),
          ];
        }),
      );
    },
  };
}

const server = process.env.SLUICE_URL ?? "http://127.0.0.1:3000";

export default defineConfig({
  resolve: { alias: { "@": new URL("./src", import.meta.url).pathname } },
  plugins: [
    tanstackRouter({ target: "react", autoCodeSplitting: true, quoteStyle: "double", semicolons: true }),
    react(),
    compress(),
  ],
  html: { cspNonce: "__CSP_NONCE__" },
  build: { target: "es2022", assetsInlineLimit: 0, chunkSizeWarningLimit: 600 },
  server: {
    port: Number(process.env.WEB_PORT ?? 5173),
    proxy: { "/api": server, "/health": server, "/docs": server },
  },
});
